//! Which worker gets a job. Pure: who is ready comes from the registry, how much
//! each has to do from the jobs.

/// A ready worker, as placement sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Jobs of ours that have not ended there.
    pub(super) live: usize,
    /// When it was last given a job, in jobs placed since the start; 0: never.
    pub(super) placed: u64,
}

/// The place in the list of the worker to take: the one with the fewest live
/// jobs, and among equals the one that has waited longest for a job, so that a
/// row of short jobs is spread. None if there is no candidate.
pub(super) fn choose(candidates: impl Iterator<Item = Candidate>) -> Option<usize> {
    candidates
        .enumerate()
        .min_by_key(|(_, candidate)| (candidate.live, candidate.placed))
        .map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(candidates: &[(usize, u64)]) -> Option<usize> {
        let candidates = candidates.iter();
        choose(candidates.map(|&(live, placed)| Candidate { live, placed }))
    }

    #[test]
    fn the_least_busy_worker_is_taken() {
        assert_eq!(chosen(&[(3, 0), (1, 9), (2, 0)]), Some(1));
    }

    #[test]
    fn among_equals_it_goes_round() {
        assert_eq!(chosen(&[(1, 7), (1, 3), (1, 5)]), Some(1));
        assert_eq!(chosen(&[(0, 0), (0, 0)]), Some(0));
    }

    #[test]
    fn nobody_is_taken_from_nobody() {
        assert_eq!(chosen(&[]), None);
    }
}
