//! Pulls an environment into a cache directory: `pull <cache-dir> <name> [mirror]`.

#![expect(clippy::disallowed_methods, reason = "an example is a front end of its own")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example is a front end")]

use std::error::Error;
use std::time::Instant;

use pyro_env::{CacheConfig, CancelFlag, EnvironmentCache, PullObserver, PullStep};

struct Printer(Instant);

impl PullObserver for Printer {
    fn step(&self, step: PullStep) {
        eprintln!("{:6.1}s {step}", self.0.elapsed().as_secs_f64());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(cache_dir), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull <cache-dir> <name> [mirror]".into());
    };
    let cache = EnvironmentCache::new(CacheConfig {
        cache_dir: cache_dir.into(),
        mirror: arguments.next(),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    });
    let pulled = cache.pull(&name, &Printer(Instant::now()), &CancelFlag::new()).inspect_err(|error| {
        if let Some(hint) = error.remedy() {
            eprintln!("hint: {hint:?}");
        }
    })?;
    println!("{}", serde_json::to_string_pretty(&pulled)?);
    Ok(())
}
