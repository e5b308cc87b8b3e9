//! One campaign: a given number of cases, each with its memory counted and its panics caught and reported with what caused them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::record;
use peak_alloc::PeakAlloc;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The allocator counts for the whole process, so campaigns go one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What a case may allocate at once: so much, and so much for each byte of its input.
const FLOOR_BYTES: usize = 256 * 1024;
const FOR_EACH_BYTE: usize = 128;

/// Where the short run of `make test` begins.
const SEED: u64 = 20_261_123;

/// How many cases, from where.
pub(crate) struct Campaign {
    name: &'static str,
    cases: usize,
    seed: u64,
}

impl Campaign {
    /// `CASES` and `SEED` from the environment: 20,000 cases without, and a seed that is always the same. `SEED=random`
    /// throws the dice for one.
    pub(crate) fn new(name: &'static str) -> Self {
        let number = |name| std::env::var(name).ok().map(|text: String| text.parse().expect("a number"));
        let cases =
            number("CASES").map_or(20_000, |cases: u64| usize::try_from(cases).expect("a number of cases"));
        let seed = match std::env::var("SEED").as_deref() {
            Ok("random") => rand::random(),
            _ => number("SEED").unwrap_or(SEED),
        };
        Self { name, cases, seed }
    }

    /// Makes an input from dice and checks what comes of it, again and again. The words of `check` are counted.
    pub(crate) fn run<T: Input>(
        self,
        make: impl Fn(&mut StdRng) -> T,
        check: impl Fn(&T) -> &'static str,
    ) -> BTreeMap<&'static str, usize> {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let Self { name, cases, seed } = self;
        println!("{name}: seed {seed}");
        let (since, mut most, mut counted) = (Instant::now(), 0, BTreeMap::new());
        for nth in 0..cases {
            // Each case has dice of its own, so that it can be repeated alone.
            let mut dice = StdRng::seed_from_u64(seed.wrapping_add(nth as u64));
            let input = make(&mut dice);
            let allowed = FLOOR_BYTES + FOR_EACH_BYTE * input.bytes();
            MEMORY.reset_peak_usage();
            let before = MEMORY.current_usage();
            let word = catch_unwind(AssertUnwindSafe(|| check(&input)));
            let taken = MEMORY.peak_usage().saturating_sub(before);
            let word =
                word.unwrap_or_else(|_| panic!("{name}: case {nth} of seed {seed}: {}", input.shown()));
            assert!(
                taken <= allowed,
                "{name}: case {nth} of seed {seed} took {taken} bytes: {}",
                input.shown()
            );
            most = most.max(taken);
            *counted.entry(word).or_default() += 1;
        }
        let (seconds, kib) = (since.elapsed().as_secs_f64(), most / 1024);
        println!("{name}: {cases} cases in {seconds:.1} s, at most {kib} KiB for one: {counted:?}");
        let words: Vec<String> = counted.iter().map(|(word, count)| format!("{count} {word}")).collect();
        let figures = format!(
            "{cases} cases in {seconds:.1} s from seed {seed}: {}; at most {kib} KiB for one",
            words.join(", ")
        );
        record::row(&format!("fuzz: {name}"), &figures);
        counted
    }
}

/// What a case consists of.
pub(crate) trait Input {
    /// Its size in bytes.
    fn bytes(&self) -> usize;
    /// Itself, for anyone who must fix what it broke.
    fn shown(&self) -> String;
}

impl Input for Vec<u8> {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn shown(&self) -> String {
        self.escape_ascii().to_string()
    }
}

impl Input for Vec<(&'static str, String)> {
    fn bytes(&self) -> usize {
        self.iter().map(|(_, text)| text.len()).sum()
    }

    fn shown(&self) -> String {
        format!("{self:?}")
    }
}
