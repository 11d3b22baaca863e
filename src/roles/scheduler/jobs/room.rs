//! How much a page may hold: so many jobs, and so many bytes of them, so that whoever
//! reads costs no more memory than that, whatever the jobs are like.

use std::sync::Arc;

use super::record::{Record, State};
use crate::{api, roles::scheduler::store::Cursor};

/// What every job takes in an answer beside its texts, as JSON.
const OWN_BYTES: usize = 1024;

/// What a job takes there for each job that it waits for.
const AWAITED_BYTES: usize = 100;

/// What is left of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    jobs: usize,
    bytes: usize,
    is_untouched: bool,
}

/// Jobs in the order of a page, as many as there was room for.
#[derive(Debug)]
pub(crate) struct Cut<T> {
    pub(crate) jobs: Vec<T>,
    /// There are more behind them.
    pub(crate) is_cut: bool,
}

impl Room {
    /// Room for so many jobs, and [`api::MAX_PAGE_BYTES`] of them.
    pub(crate) fn of(jobs: usize) -> Self {
        Self {
            jobs,
            bytes: api::MAX_PAGE_BYTES,
            is_untouched: true,
        }
    }

    /// How many jobs there is room for, if they are small.
    pub(crate) fn jobs(&self) -> usize {
        self.jobs
    }

    /// Whether a job of so many bytes still goes in, which it then does. The first
    /// always does, or a reader would never get behind it.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let fits = self.jobs > 0 && (bytes <= self.bytes || self.is_untouched);
        if fits {
            self.jobs -= 1;
            self.bytes = self.bytes.saturating_sub(bytes);
            self.is_untouched = false;
        }
        fits
    }

    /// As many of these as there is room for.
    pub(crate) fn fill<T, E>(
        mut self,
        jobs: impl IntoIterator<Item = Result<(T, usize), E>>,
    ) -> Result<Cut<T>, E> {
        let mut cut = Cut {
            jobs: Vec::new(),
            is_cut: false,
        };
        for job in jobs {
            let (job, bytes) = job?;
            if !self.take(bytes) {
                cut.is_cut = true;
                break;
            }
            cut.jobs.push(job);
        }
        Ok(cut)
    }
}

impl<T> Cut<T> {
    /// The last of those that are here, if there are more behind it.
    pub(crate) fn edge<K>(&self, key: impl Fn(&T) -> K) -> Option<K> {
        self.jobs.last().filter(|_| self.is_cut).map(key)
    }
}

impl Record {
    /// Where it is in the order of pages.
    pub(crate) fn cursor(&self) -> Cursor {
        (self.created_at, self.id)
    }

    /// About what it takes in an answer, and not much less than that.
    pub(crate) fn shown_bytes(&self) -> usize {
        let spec = &self.spec;
        let texts = [&spec.command, &spec.path, &spec.cwd, &spec.user, &spec.name];
        let texts = texts.into_iter().flatten();
        let texts = texts.chain(&spec.args).chain(&spec.env);
        let texts: usize = texts.map(|text| json_bytes(text)).sum();
        // What a job waits for may name its labels once more.
        let labels = spec.labels.iter();
        let labels: usize = labels.map(|label| 2 * json_bytes(&label.to_string())).sum();
        let item = self
            .member
            .as_ref()
            .and_then(|member| member.item.as_deref());
        let reason = match &self.state {
            State::Unknown { why, .. } => json_bytes(why),
            State::Ended { reason, .. } => json_bytes(reason),
            State::Queued | State::Pending { .. } | State::Running(_) => 0,
        };
        OWN_BYTES
            + texts
            + labels
            + item.map_or(0, json_bytes)
            + reason
            + AWAITED_BYTES * self.after.len()
    }
}

/// With its quotes, a comma, and what has to be escaped (RFC 8259).
fn json_bytes(text: &str) -> usize {
    let escaped = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..0x20 => 6,
        _ => 1,
    });
    3 + escaped.sum::<usize>()
}

/// The jobs of both, in the order of `key`, each once, as many as there is room for:
/// none that is behind a job which was cut off of either.
pub(super) fn merge<K: Ord + Copy>(
    room: Room,
    memory: Cut<Arc<Record>>,
    disk: Cut<Record>,
    key: impl Fn(&Record) -> K,
) -> Cut<Arc<Record>> {
    let edges = [
        memory.edge(|record| key(record)),
        disk.edge(|record| key(record)),
    ];
    let edge = edges.into_iter().flatten().min();
    let is_cut = memory.is_cut || disk.is_cut;
    let mut jobs = memory.jobs;
    // What ended this very moment is in both.
    super::add(&mut jobs, disk.jobs);
    jobs.retain(|record| edge.is_none_or(|edge| key(record) <= edge));
    jobs.sort_by_key(|record| key(record));
    let jobs = jobs.into_iter().map(|record| {
        let bytes = record.shown_bytes();
        Ok::<_, std::convert::Infallible>((record, bytes))
    });
    let Ok(filled) = room.fill(jobs);
    Cut {
        is_cut: filled.is_cut || is_cut,
        ..filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::scheduler::jobs::{Spec, record::tests::record};

    fn with_args(args: &[&str]) -> Record {
        let spec = Spec {
            args: args.iter().map(|text| (*text).to_owned()).collect(),
            labels: vec!["role=web".parse().unwrap()],
            ..Spec::default()
        };
        Record {
            spec: Arc::new(spec),
            ..record(State::Queued)
        }
    }

    #[test]
    fn a_job_does_not_take_more_in_an_answer_than_is_counted() {
        for args in [
            vec![],
            vec!["plain"; 50],
            vec!["\u{1}\"\\\n\t\u{7f}\u{fffd}"; 100],
        ] {
            let job = with_args(&args);
            let written = serde_json::to_vec(&job.job()).unwrap().len();
            let counted = job.shown_bytes();
            assert!(written <= counted, "{written} {counted}");
            assert!(counted < written + 1024, "{written} {counted}");
        }
    }

    #[test]
    fn the_first_job_always_fits_and_no_other_that_is_too_large() {
        let mut room = Room::of(3);
        assert!(
            room.take(api::MAX_PAGE_BYTES + 1),
            "or nobody gets behind it"
        );
        assert!(!room.take(1));
        let mut room = Room::of(2);
        assert!(room.take(1) && !room.take(api::MAX_PAGE_BYTES) && room.take(1));
        assert!(!room.take(0), "there are two by now");
    }

    #[test]
    fn nothing_is_shown_that_is_behind_what_was_cut_off() {
        let jobs: Vec<Record> = (0..6)
            .map(|n| Record {
                output_bytes: n,
                ..with_args(&[])
            })
            .collect();
        let cut = |numbers: &[usize], is_cut| Cut {
            jobs: numbers.iter().map(|n| jobs[*n].clone()).collect(),
            is_cut,
        };
        let merged = |memory: Cut<Record>, disk, most| -> (Vec<u64>, bool) {
            let memory = Cut {
                jobs: memory.jobs.into_iter().map(Arc::new).collect(),
                is_cut: memory.is_cut,
            };
            let merged = merge(Room::of(most), memory, disk, |record| record.output_bytes);
            let shown = merged.jobs.iter().map(|record| record.output_bytes);
            (shown.collect(), merged.is_cut)
        };
        let (all, first) = (cut(&[0, 2, 4], false), cut(&[1, 2], true));
        assert_eq!(merged(all, first, 9), (vec![0, 1, 2], true));
        let (first, all) = (cut(&[0], true), cut(&[1, 3], false));
        assert_eq!(merged(first, all, 9), (vec![0], true));
        let (left, right) = (cut(&[0, 3], true), cut(&[1, 5], true));
        assert_eq!(merged(left, right, 9), (vec![0, 1, 3], true));
        let (left, right) = (cut(&[0, 3], false), cut(&[1, 3], false));
        assert_eq!(merged(left, right, 9), (vec![0, 1, 3], false));
        let (left, right) = (cut(&[0, 3], false), cut(&[1], false));
        assert_eq!(merged(left, right, 2), (vec![0, 1], true));
    }
}
