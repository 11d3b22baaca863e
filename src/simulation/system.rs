//! What a simulated machine asks of its kernel: the time, and random numbers. This
//! file stands in for the C library's functions in the program of the unit tests, for
//! every crate in it. Without a simulation they do what those of the library do.
#![expect(
    unsafe_code,
    reason = "functions of the C library have its signatures, and its pointers"
)]

use std::{
    ptr, slice,
    sync::atomic::{AtomicU64, Ordering},
};

use libc::{c_int, c_long, c_uint, c_void, clockid_t, size_t, ssize_t, timespec, timeval};

/// Where the random numbers are; 0: they are the kernel's.
static RANDOM: AtomicU64 = AtomicU64::new(0);

/// From here on random numbers follow from this.
pub(super) fn seed(seed: u64) {
    RANDOM.store(seed.wrapping_mul(2).wrapping_add(1), Ordering::Relaxed);
}

/// SplitMix64: no lock that a caller could hold already.
fn random() -> u64 {
    let mut z = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c16, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if RANDOM.load(Ordering::Relaxed) == 0 {
        // SAFETY: the caller's arguments are those of getrandom(2), which checks them.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return got as ssize_t;
    }
    if length > 0 {
        // SAFETY: by getrandom(2) the caller gives `length` bytes that may be written.
        let bytes = unsafe { slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&random().to_le_bytes()[..part.len()]);
        }
    }
    length as ssize_t
}

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let now = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => super::wall_time(),
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_BOOTTIME => super::monotonic_time(),
        _ => None,
    };
    let Some(now) = now else {
        // SAFETY: the caller's arguments are those of clock_gettime(2), which checks
        // them.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    };
    let now = timespec {
        tv_sec: now.as_secs().cast_signed(),
        tv_nsec: c_long::from(now.subsec_nanos()),
    };
    // SAFETY: by clock_gettime(2) the caller gives a `timespec` that may be written.
    unsafe { ptr::write(time, now) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn gettimeofday(time: *mut timeval, zone: *mut c_void) -> c_int {
    let Some(now) = super::wall_time() else {
        // SAFETY: the caller's arguments are those of gettimeofday(2), which checks them.
        return unsafe { libc::syscall(libc::SYS_gettimeofday, time, zone) } as c_int;
    };
    let now = timeval {
        tv_sec: now.as_secs().cast_signed(),
        tv_usec: c_long::from(now.subsec_micros()),
    };
    // SAFETY: by gettimeofday(2) the caller gives a `timeval` that may be written.
    unsafe { ptr::write(time, now) };
    0
}
