//! The shim's line to a worker: the one that started it, or after that one is
//! gone the next that calls.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{
            fs::DirBuilderExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt::socket_peercred,
    process::geteuid,
};

use super::protocol::{self, Command, Event, Spec};

/// Between two attempts to write a result where there was no room for it.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Between two attempts to take a call where there was no descriptor for it.
const CALL_AGAIN: Duration = Duration::from_millis(10);

/// Sending never blocks the job: what the worker does not take yet waits here,
/// and of the lengths of the output only the last.
pub(super) struct Control {
    connection: Option<UnixStream>,
    /// Where the next worker calls; there as soon as there is a job.
    listener: Option<UnixListener>,
    /// What every worker is told first.
    started: Option<Event>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// The end of the output, and whether this worker was told.
    output: (u64, bool),
}

impl Control {
    pub(super) fn new(connection: UnixStream) -> Self {
        Self {
            connection: Some(connection),
            listener: None,
            started: None,
            inbox: Vec::new(),
            outbox: Vec::new(),
            output: (0, true),
        }
    }

    /// Waits for the specification. `None`: the worker has gone.
    pub(super) fn spec(&mut self) -> Option<Spec> {
        loop {
            match self.receive() {
                Some(Command::Start(spec)) => return Some(*spec),
                Some(Command::Stop { .. } | Command::Receipt) => {}
                None if self.connection.is_none() => return None,
                None => {}
            }
        }
    }

    /// From here on another worker can call, and nothing here blocks.
    pub(super) fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.listener = Some(listener);
        if let Some(connection) = &self.connection {
            connection.set_nonblocking(true)?;
        }
        Ok(())
    }

    /// What to poll for: the connection, and the listener.
    pub(super) fn interests(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        let mut flags = PollFlags::IN;
        if !self.outbox.is_empty() {
            flags |= PollFlags::OUT;
        }
        [
            self.connection.as_ref().map(|fd| (fd.as_fd(), flags)),
            self.listener.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
        ]
    }

    /// Takes the next call, if it is one of this user's. It takes the place of
    /// an earlier worker. True if one was taken.
    pub(super) fn accept(&mut self) -> bool {
        let Some(listener) = &self.listener else {
            return false;
        };
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if is_passing(&error) => return false,
            Err(_) => {
                // No descriptor or no memory is left: no reason to end a job. The
                // caller waits in the queue, of which nobody tells a second time.
                std::thread::sleep(CALL_AGAIN);
                return false;
            }
        };
        let is_ours = match socket_peercred(&connection) {
            Ok(caller) => caller.uid == geteuid() || caller.uid.is_root(),
            Err(_) => false,
        };
        if !is_ours || connection.set_nonblocking(true).is_err() {
            return false;
        }
        self.connection = Some(connection);
        self.inbox.clear();
        self.outbox.clear();
        // The output first: whoever hears that the job runs knows how much there is.
        let end = self.output.0;
        self.outbox.extend(protocol::encode(&Event::Output { end }));
        self.output.1 = true;
        if let Some(started) = &self.started {
            self.outbox.extend(protocol::encode(started));
        }
        self.flush();
        true
    }

    /// The next command that is there in full; `None` if there is none yet, or
    /// none to come. Also sends what could not be sent before.
    pub(super) fn receive(&mut self) -> Option<Command> {
        self.flush();
        if let Some(command) = self.decode() {
            return Some(command);
        }
        let Some(connection) = &mut self.connection else {
            return None;
        };
        let mut buffer = [0; 16 * 1024];
        match connection.read(&mut buffer) {
            Ok(0) => self.connection = None,
            Ok(length) => self.inbox.extend_from_slice(&buffer[..length]),
            Err(error) if is_passing(&error) => {}
            // Reset: the worker is as gone as if it had closed.
            Err(_) => self.connection = None,
        }
        self.decode()
    }

    /// Who sends what is no command is no worker, and no reason to end a job.
    fn decode(&mut self) -> Option<Command> {
        protocol::decode(&mut self.inbox).unwrap_or_else(|_| {
            self.connection = None;
            self.inbox.clear();
            None
        })
    }

    /// Tells this worker, and every later one, that the job has started.
    pub(super) fn started(&mut self, event: Event) {
        self.send(&event);
        self.started = Some(event);
    }

    pub(super) fn output(&mut self, end: u64) {
        self.output = (end, false);
        self.flush();
    }

    pub(super) fn send(&mut self, event: &Event) {
        if self.connection.is_some() {
            self.outbox.extend(protocol::encode(event));
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let Some(connection) = &mut self.connection {
            if self.outbox.is_empty() {
                if std::mem::replace(&mut self.output.1, true) {
                    break;
                }
                let end = self.output.0;
                self.outbox = protocol::encode(&Event::Output { end });
            }
            match connection.write(&self.outbox) {
                Ok(length) => {
                    self.outbox.drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.connection = None,
            }
        }
    }

    /// Hands over the last message: to the worker, until it has given a receipt,
    /// or if there is none to the disk. Returns once it is safe in either place, or
    /// when the folder for it is gone, and with it all that knows of the job.
    pub(super) fn hand_over(mut self, last: &Event, result: &Path) -> io::Result<()> {
        self.send(last);
        loop {
            let mut written = true;
            if self.connection.is_none() {
                written = keep(last, result).is_ok();
                if written || is_homeless(result) {
                    return Ok(());
                }
            }
            let interests = self.interests();
            let mut fds: Vec<_> = interests
                .iter()
                .flatten()
                .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
                .collect();
            let pause = Timespec::try_from(TRY_AGAIN).ok().filter(|_| !written);
            match poll(&mut fds, pause.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.accept() {
                self.send(last);
            }
            while let Some(command) = self.receive() {
                match command {
                    Command::Receipt => return Ok(()),
                    Command::Stop { .. } | Command::Start(_) => {}
                }
            }
        }
    }
}

/// All or nothing, and on the disk when it returns.
fn keep(last: &Event, result: &Path) -> io::Result<()> {
    if let Some(folder) = result.parent() {
        // It may have been removed alone. Where it was not, this changes nothing.
        let _ = fs::DirBuilder::new().mode(0o700).create(folder);
    }
    let unfinished = result.with_extension("part");
    // Never through what somebody else put there.
    let _ = fs::remove_file(&unfinished);
    let mut file = fs::File::create_new(&unfinished)?;
    serde_json::to_writer(&file, last)?;
    file.flush()?;
    file.sync_all()?;
    fs::rename(&unfinished, result)?;
    match result.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Whether the folder for this file was removed. No worker will look there: one that
/// begins with another folder of that name has no journal that names the job.
fn is_homeless(result: &Path) -> bool {
    result.parent().is_some_and(|folder| {
        fs::symlink_metadata(folder).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    })
}

/// Nothing is wrong, there is just nothing to be had right now.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
