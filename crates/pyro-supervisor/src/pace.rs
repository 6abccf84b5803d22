//! How slow this host is, as one number, for every limit of time that depends on what a guest or its VMM does.
//!
//! Each of these limits is given for a usual host, next to what it limits, and multiplied by this. A limit that only finds
//! out whether a process of this host responds at all is not multiplied.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The slowest host that is waited for.
const MAX: u32 = 20;

/// How many times longer than on a usual host guests may take on this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Pace(u32);

impl Default for Pace {
    fn default() -> Self {
        Self::USUAL
    }
}

impl Pace {
    /// That of a usual host, or of one of which nothing is known.
    pub const USUAL: Self = Self(1);

    /// Returns the pace of a host on which something took `took` that takes `usual` on a usual host.
    pub fn of(took: Duration, usual: Duration) -> Self {
        let times = took.as_millis().checked_div(usual.as_millis()).unwrap_or(1);
        Self(u32::try_from(times).unwrap_or(MAX).clamp(1, MAX))
    }

    /// Returns the limit on this host for what has this limit on a usual one.
    pub fn allow(self, limit: Duration) -> Duration {
        // The number may be that of another program.
        limit.saturating_mul(self.0.clamp(1, MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_a_slow_host_and_never_shrink() {
        let second = Duration::from_secs(1);
        let allowed = |took: u64| Pace::of(Duration::from_millis(took), second).allow(second * 10).as_secs();
        assert_eq!([0, 300, 1_999, 2_000, 7_500].map(allowed), [10, 10, 10, 20, 70]);
        assert_eq!(allowed(u64::MAX), 200);
        assert_eq!(Pace::of(second, Duration::ZERO), Pace::USUAL);
        for (text, seconds) in [("0", 10), ("3", 30), ("4000000000", 200)] {
            let pace: Pace = serde_json::from_str(text).unwrap();
            assert_eq!(pace.allow(second * 10).as_secs(), seconds);
        }
    }
}
