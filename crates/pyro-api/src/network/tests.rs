use proptest::prelude::*;

use super::*;

fn policy(json: serde_json::Value) -> NetworkPolicy {
    serde_json::from_value(json).unwrap()
}

fn allowlist(domains: &[&str]) -> NetworkPolicy {
    policy(serde_json::json!({ "egress": "allowlist", "allow_domains": domains }))
}

#[test]
fn entries_are_read_and_written_in_one_form() {
    for (text, expected) in
        [("10.1.2.3/16", "10.1.0.0/16"), ("10.1.2.3", "10.1.2.3/32"), ("fd00::1", "fd00::1/128")]
    {
        assert_eq!(text.parse::<AllowedCidr>().unwrap().to_string(), expected);
    }
    for (text, expected) in [
        ("Db.Example.TEST.", "db.example.test"),
        ("db.example.test:5432", "db.example.test:5432"),
        ("10.0.0.7", "10.0.0.7"),
        ("10.0.0.7:22", "10.0.0.7:22"),
        ("fd00::7", "fd00::7"),
        ("[fd00::7]", "fd00::7"),
        ("[fd00::7]:22", "[fd00::7]:22"),
        ("localhost", "localhost"),
    ] {
        assert_eq!(text.parse::<AllowedHost>().unwrap().to_string(), expected);
    }
    for (text, expected) in [
        ("Example.Test", "example.test"),
        ("*.example.test", "*.example.test"),
        ("git.example.test:22", "git.example.test:22"),
        ("@pypi", "@pypi"),
    ] {
        assert_eq!(text.parse::<AllowedDomain>().unwrap().to_string(), expected);
    }
}

#[test]
fn text_that_is_no_entry_is_refused_with_what_is_expected() {
    for text in ["", "10.0.0.0/33", "example.test", "10.0.0", "10.0.0.0/16/8", "0x7f.1"] {
        assert_eq!(text.parse::<AllowedCidr>(), Err(InvalidPattern::Cidr), "{text:?}");
    }
    for text in [
        "", ":22", "a:", "a:0", "a:65536", "a:+22", "a b", "*.a", "http://a", "a..b", "-a", "127.1", "[::1",
        "[::1]x",
    ] {
        assert_eq!(text.parse::<AllowedHost>(), Err(InvalidPattern::Host), "{text:?}");
    }
    for text in ["", "*", "*.", "a.*.b", "**.a", "a:", "10.0.0.1", "ä.test", "*.*.a", ".a"] {
        assert_eq!(text.parse::<AllowedDomain>(), Err(InvalidPattern::Domain), "{text:?}");
    }
    for text in ["@", "@other", "@PyPI", "@pypi:443", "*.@pypi", "@pypi.test"] {
        let expected = if text.starts_with('@') { InvalidPattern::Preset } else { InvalidPattern::Domain };
        assert_eq!(text.parse::<AllowedDomain>(), Err(expected), "{text:?}");
    }
    let error = serde_json::from_value::<NetworkPolicy>(serde_json::json!({ "allow_cidrs": ["x"] }));
    assert!(error.unwrap_err().to_string().starts_with("invalid address range: expected"));
}

#[test]
fn a_policy_is_checked_as_a_whole() {
    let error = policy(serde_json::json!({ "allow_domains": ["a.test"] })).check().unwrap_err();
    assert_eq!(error, PolicyError::DomainsNeedAllowlist);
    let many = vec!["10.0.0.0/8"; MAX_ENTRIES + 1];
    let error = policy(serde_json::json!({ "allow_cidrs": many })).check().unwrap_err();
    assert_eq!(error.to_string(), "invalid allow_cidrs: expected at most 64 entries");
    assert_eq!(NetworkPolicy::default().check(), Ok(()));
}

#[test]
fn a_policy_can_only_be_narrowed() {
    let wide = policy(serde_json::json!({
        "egress": "allowlist",
        "allow_cidrs": ["10.0.0.0/8"],
        "allow_hosts": ["db.test", "api.test:443"],
        "allow_domains": ["*.example.test", "git.test:22", "www.test", "@pypi"],
    }));
    for within in [
        serde_json::json!({ "egress": "allowlist" }),
        serde_json::json!({ "egress": "allowlist", "allow_cidrs": ["10.0.0.0/8"] }),
        serde_json::json!({ "egress": "allowlist", "allow_hosts": ["db.test:5432", "api.test:443"] }),
        serde_json::json!({ "egress": "allowlist",
            "allow_domains": ["a.example.test", "*.b.example.test", "*.example.test", "www.test:443", "git.test:22", "@pypi"] }),
    ] {
        assert_eq!(policy(within.clone()).check_within(&wide), Ok(()), "{within}");
    }
    for beyond in [
        serde_json::json!({}),
        serde_json::json!({ "egress": "allowlist", "allow_cidrs": ["10.0.0.0/7"] }),
        serde_json::json!({ "egress": "allowlist", "allow_cidrs": ["10.9.0.0/16"] }),
        serde_json::json!({ "egress": "allowlist", "allow_hosts": ["10.1.1.1:22"] }),
        serde_json::json!({ "egress": "allowlist", "allow_cidrs": ["fd00::/8"] }),
        serde_json::json!({ "egress": "allowlist", "allow_hosts": ["api.test"] }),
        serde_json::json!({ "egress": "allowlist", "allow_hosts": ["api.test:80"] }),
        serde_json::json!({ "egress": "allowlist", "allow_hosts": ["11.0.0.1"] }),
        serde_json::json!({ "egress": "allowlist", "allow_domains": ["example.test"] }),
        serde_json::json!({ "egress": "allowlist", "allow_domains": ["badexample.test"] }),
        serde_json::json!({ "egress": "allowlist", "allow_domains": ["*.test"] }),
        serde_json::json!({ "egress": "allowlist", "allow_domains": ["www.test:8080"] }),
        serde_json::json!({ "egress": "allowlist", "allow_domains": ["git.test"] }),
        serde_json::json!({ "egress": "allowlist", "allow_domains": ["@npm"] }),
        serde_json::json!({ "egress": "allowlist", "allow_domains": ["pypi"] }),
    ] {
        assert!(policy(beyond.clone()).check_within(&wide).is_err(), "{beyond}");
    }
}

#[test]
fn nobody_opens_what_is_closed_by_default() {
    let opens_loopback = policy(serde_json::json!({ "allow_cidrs": ["127.0.0.0/8"] }));
    let error = opens_loopback.check_within(&NetworkPolicy::default()).unwrap_err();
    assert_eq!(error.to_string(), "allow_cidrs may not name 127.0.0.0/8");
    assert_eq!(allowlist(&["example.test"]).check_within(&NetworkPolicy::default()), Ok(()));
}

proptest! {
    #[test]
    fn entries_survive_their_text(policy: NetworkPolicy) {
        let text = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(serde_json::from_str::<NetworkPolicy>(&text).unwrap(), policy);
    }

    #[test]
    fn a_policy_is_within_itself(policy: NetworkPolicy) {
        prop_assert_eq!(policy.check_within(&policy), Ok(()));
    }

    #[test]
    fn what_is_within_is_transitive(a: NetworkPolicy, b: NetworkPolicy, c: NetworkPolicy) {
        if a.check_within(&b).is_ok() && b.check_within(&c).is_ok() {
            prop_assert_eq!(a.check_within(&c), Ok(()));
        }
    }
}
