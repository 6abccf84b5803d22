use super::*;

fn judge(policy: &Policy, address: &str, port: u16) -> Verdict {
    judge_named(policy, Protocol::Tcp, (address, port), &[])
}

fn judge_named(policy: &Policy, protocol: Protocol, to: (&str, u16), names: &[&str]) -> Verdict {
    judge_related(policy, protocol, to, names, Relation::Other)
}

fn judge_related(
    policy: &Policy,
    protocol: Protocol,
    (address, port): (&str, u16),
    names: &[&str],
    relation: Relation,
) -> Verdict {
    let names: Vec<_> = names.iter().map(|name| DnsName::new(name).unwrap()).collect();
    let names: Vec<_> = names.iter().collect();
    let address = crate::host::effective(address.parse().unwrap());
    policy.judge(&Destination { protocol, address, port, relation, names: &names })
}

fn cidrs(cidrs: &[&str]) -> Policy {
    Policy { allow_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(), ..Policy::default() }
}

/// `HOST` or `HOST:PORT`.
pub(crate) fn host_rule(text: &str) -> HostRule {
    let (host, port) = split(text);
    let address = host.parse().map(Host::Address);
    HostRule { host: address.unwrap_or_else(|_| Host::Name(DnsName::new(host).unwrap())), port }
}

/// `NAME` or `*.NAME`, with `:PORT` or without.
pub(crate) fn domain_rule(text: &str) -> DomainRule {
    let (pattern, port) = split(text);
    let name = DnsName::new(pattern.trim_start_matches("*.")).unwrap();
    DomainRule { pattern: DomainPattern { name, below: pattern.starts_with('*') }, port }
}

fn split(text: &str) -> (&str, Option<u16>) {
    let (name, port) = text.split_once(':').unwrap_or((text, ""));
    (name, port.parse().ok())
}

fn allowlist(domains: &[&str], hosts: &[&str]) -> Policy {
    Policy {
        egress: Egress::Allowlist,
        allow_domains: domains.iter().map(|rule| domain_rule(rule)).collect(),
        allow_hosts: hosts.iter().map(|rule| host_rule(rule)).collect(),
        ..Policy::default()
    }
}

#[test]
fn the_public_internet_is_open_and_nothing_else() {
    let policy = Policy::default();
    for address in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00::1",
        "64:ff9b::1.1.1.1",
        "2002:101:101::1",
        "::ffff:1.1.1.1",
        "2001:200::1",
        "2001:4860:4860::8888",
    ] {
        assert_eq!(judge(&policy, address, 443), Verdict::Allowed, "{address}");
    }
    for (address, rule) in [
        ("0.0.0.0", Rule::Loopback),
        ("0.1.2.3", Rule::Loopback),
        ("127.0.0.1", Rule::Loopback),
        ("127.255.255.254", Rule::Loopback),
        ("10.0.0.1", Rule::Private),
        ("172.16.0.1", Rule::Private),
        ("172.31.255.255", Rule::Private),
        ("192.168.1.1", Rule::Private),
        ("100.64.0.1", Rule::SharedAddressSpace),
        ("100.127.255.255", Rule::SharedAddressSpace),
        ("169.254.169.254", Rule::LinkLocal),
        ("192.0.0.192", Rule::Reserved),
        ("192.0.2.1", Rule::Documentation),
        ("198.51.100.1", Rule::Documentation),
        ("203.0.113.1", Rule::Documentation),
        ("198.19.255.255", Rule::Documentation),
        ("192.88.99.1", Rule::Reserved),
        ("224.0.0.251", Rule::Multicast),
        ("239.255.255.250", Rule::Multicast),
        ("255.255.255.255", Rule::Broadcast),
        ("240.0.0.1", Rule::Reserved),
        ("::", Rule::Loopback),
        ("::1", Rule::Loopback),
        ("::127.0.0.1", Rule::Reserved),
        ("::ffff:127.0.0.1", Rule::Loopback),
        ("::ffff:169.254.169.254", Rule::LinkLocal),
        ("::ffff:10.0.0.1", Rule::Private),
        ("::ffff:0.0.0.0", Rule::Loopback),
        ("64:ff9b::127.0.0.1", Rule::Loopback),
        ("64:ff9b::10.0.0.1", Rule::Private),
        ("64:ff9b:1::1", Rule::Reserved),
        ("2002:7f00:1::1", Rule::Loopback),
        ("2002:a00:1::", Rule::Private),
        ("2002:a9fe:a9fe::", Rule::LinkLocal),
        ("2001::1", Rule::Reserved),
        ("2001:0:4136:e378::1", Rule::Reserved),
        ("2001:db8::1", Rule::Documentation),
        ("3fff::1", Rule::Documentation),
        ("100::1", Rule::Reserved),
        ("fc00::1", Rule::Private),
        ("fd00:ec2::254", Rule::Private),
        ("fe80::1", Rule::LinkLocal),
        ("fec0::1", Rule::Private),
        ("ff02::1", Rule::Multicast),
        ("4000::1", Rule::Reserved),
        ("5f00::1", Rule::Reserved),
        ("1::1", Rule::Reserved),
    ] {
        assert_eq!(judge(&policy, address, 443), Verdict::Denied(rule), "{address}");
    }
}

#[test]
fn the_hosts_own_addresses_are_denied_whatever_they_are() {
    let own =
        |policy: &Policy, address| judge_related(policy, Protocol::Tcp, (address, 22), &[], Relation::Own);
    let public = Policy::default();
    assert_eq!(own(&public, "1.1.1.1"), Verdict::Denied(Rule::HostAddress));
    assert_eq!(own(&public, "192.168.1.5"), Verdict::Denied(Rule::HostAddress));
    assert_eq!(own(&public, "2a00::1"), Verdict::Denied(Rule::HostAddress));
    assert_eq!(
        own(&cidrs(&["192.168.1.0/24", "1.1.1.0/24"]), "192.168.1.5"),
        Verdict::Denied(Rule::HostAddress)
    );
    assert_eq!(own(&cidrs(&["1.1.1.0/24"]), "1.1.1.1"), Verdict::Denied(Rule::HostAddress));
    assert_eq!(own(&cidrs(&["192.168.1.5/32"]), "192.168.1.5"), Verdict::Allowed);
    assert_eq!(own(&cidrs(&["1.1.1.1/32"]), "1.1.1.1"), Verdict::Allowed);
    let broadcast = judge_related(&public, Protocol::Udp, ("1.1.1.255", 9), &[], Relation::Broadcast);
    assert_eq!(broadcast, Verdict::Denied(Rule::Broadcast));
}

#[test]
fn a_network_opens_a_special_range_only_if_it_lies_within_it() {
    let policy = cidrs(&["0.0.0.0/0", "::/0"]);
    for address in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "fd00::1", "::1", "::ffff:127.0.0.1"] {
        assert!(matches!(judge(&policy, address, 80), Verdict::Denied(_)), "{address}");
    }
    let policy = cidrs(&["10.1.0.0/16", "127.0.0.1/32", "fd00:1::/64"]);
    for address in ["10.1.2.3", "127.0.0.1", "fd00:1::9", "::ffff:10.1.2.3", "::ffff:127.0.0.1"] {
        assert_eq!(judge(&policy, address, 80), Verdict::Allowed, "{address}");
    }
    for address in ["10.2.0.1", "127.0.0.2", "fd00:2::1", "64:ff9b::10.1.2.3", "2002:a01:203::"] {
        assert!(matches!(judge(&policy, address, 80), Verdict::Denied(_)), "{address}");
    }
    assert_eq!(judge(&cidrs(&["224.0.0.0/4"]), "224.0.0.1", 80), Verdict::Denied(Rule::Multicast));
}

#[test]
fn a_host_is_opened_on_its_port() {
    let policy = Policy {
        allow_hosts: vec![host_rule("10.0.0.5:5432"), host_rule("db.example.test:5432")],
        ..Policy::default()
    };
    assert_eq!(judge(&policy, "10.0.0.5", 5432), Verdict::Allowed);
    assert_eq!(judge(&policy, "10.0.0.5", 5433), Verdict::Denied(Rule::Private));
    let named = |address, port| judge_named(&policy, Protocol::Tcp, (address, port), &["db.example.test"]);
    assert_eq!(named("10.0.0.6", 5432), Verdict::Allowed);
    assert_eq!(named("10.0.0.6", 5433), Verdict::Denied(Rule::Private));
    for address in ["127.0.0.1", "169.254.169.254", "::1"] {
        assert!(matches!(named(address, 5432), Verdict::Denied(_)), "{address}");
    }
    let own = judge_related(&policy, Protocol::Tcp, ("10.0.0.6", 5432), &["db.example.test"], Relation::Own);
    assert_eq!(own, Verdict::Denied(Rule::HostAddress));
}

#[test]
fn an_allowlist_lets_only_bound_names_through() {
    let policy = allowlist(&["example.test", "*.cdn.example.test:8443"], &["git.example.test"]);
    let tcp = |port, names: &[&str]| judge_named(&policy, Protocol::Tcp, ("1.1.1.1", port), names);
    let name = |text: &str| DnsName::new(text).unwrap();
    assert_eq!(tcp(443, &[]), Verdict::Denied(Rule::NotOnAllowlist));
    assert_eq!(tcp(443, &["other.test"]), Verdict::Denied(Rule::NotOnAllowlist));
    assert_eq!(tcp(443, &["other.test", "example.test"]), Verdict::AllowedFor(vec![name("example.test")]));
    assert_eq!(tcp(22, &["example.test"]), Verdict::Denied(Rule::NotOnAllowlist));
    assert_eq!(tcp(8443, &["a.cdn.example.test"]), Verdict::Allowed);
    assert_eq!(tcp(443, &["a.cdn.example.test"]), Verdict::Denied(Rule::NotOnAllowlist));
    assert_eq!(tcp(22, &["git.example.test"]), Verdict::Allowed);
    assert_eq!(tcp(443, &["git.example.test"]), Verdict::AllowedFor(vec![name("git.example.test")]));
    let udp = |port, names: &[&str]| judge_named(&policy, Protocol::Udp, ("1.1.1.1", port), names);
    assert_eq!(udp(443, &["example.test"]), Verdict::Denied(Rule::NotOnAllowlist));
    assert_eq!(udp(123, &["git.example.test"]), Verdict::Allowed);
    let private = judge_named(&policy, Protocol::Tcp, ("10.0.0.1", 443), &["example.test"]);
    assert_eq!(private, Verdict::Denied(Rule::Private));
}

#[test]
fn an_answer_binds_no_name_to_what_it_must_not_reach() {
    let mut policy = allowlist(&["*.example.test"], &["db.example.test"]);
    let may = |policy: &Policy, name, address: &str, relation| {
        policy.may_bind(&DnsName::new(name).unwrap(), address.parse().unwrap(), relation)
    };
    assert!(may(&policy, "a.example.test", "1.1.1.1", Relation::Other));
    assert!(!may(&policy, "a.example.test", "1.1.1.1", Relation::Own));
    assert!(!may(&policy, "a.example.test", "10.0.0.1", Relation::Other));
    assert!(may(&policy, "db.example.test", "10.0.0.1", Relation::Other));
    assert!(!may(&policy, "db.example.test", "127.0.0.1", Relation::Own));
    policy.allow_cidrs.push("10.0.0.0/24".parse().unwrap());
    assert!(may(&policy, "a.example.test", "10.0.0.1", Relation::Other));
    let verdict = |policy: &Policy, name| policy.judge_name(&DnsName::new(name).unwrap());
    assert_eq!(verdict(&policy, "a.example.test"), NameVerdict::Bound);
    assert_eq!(verdict(&policy, "example.test"), NameVerdict::Denied);
    policy.egress = Egress::Public;
    assert_eq!(verdict(&policy, "example.test"), NameVerdict::Free);
    assert_eq!(verdict(&policy, "db.example.test"), NameVerdict::Bound);
}

#[test]
fn a_proxy_is_opened_on_its_port_and_names_any_server() {
    let proxies = ["10.0.0.5:3128", "proxy.example.test:80"].map(host_rule).to_vec();
    let policy = Policy { proxies, ..allowlist(&["example.test"], &[]) };
    let judge = |protocol, to, names: &[&str]| judge_named(&policy, protocol, to, names);
    assert_eq!(judge(Protocol::Tcp, ("10.0.0.5", 3128), &[]), Verdict::Allowed);
    assert_eq!(judge(Protocol::Tcp, ("10.0.0.5", 80), &[]), Verdict::Denied(Rule::Private));
    assert_eq!(judge(Protocol::Udp, ("10.0.0.5", 3128), &[]), Verdict::Denied(Rule::Private));
    // Port 80 of any other name is compared with the server that the guest names.
    assert_eq!(judge(Protocol::Tcp, ("10.0.0.6", 80), &["proxy.example.test"]), Verdict::Allowed);
    assert_eq!(
        judge(Protocol::Tcp, ("10.0.0.6", 81), &["proxy.example.test"]),
        Verdict::Denied(Rule::Private)
    );
    let own = judge_related(&policy, Protocol::Tcp, ("10.0.0.6", 80), &["proxy.example.test"], Relation::Own);
    assert_eq!(own, Verdict::Denied(Rule::HostAddress));
    let proxy = DnsName::new("proxy.example.test").unwrap();
    assert_eq!(policy.judge_name(&proxy), NameVerdict::Bound);
    assert!(policy.may_bind(&proxy, "10.0.0.6".parse().unwrap(), Relation::Other));
}

#[test]
fn the_gateway_leads_to_opened_loopback_ports_alone() {
    let policy = Policy {
        allow_hosts: vec![host_rule("127.0.0.1:5432"), host_rule("127.0.0.1"), host_rule("10.0.0.5:81")],
        proxies: vec![HostRule { host: Host::Address("::1".parse().unwrap()), port: Some(3128) }],
        ..Policy::default()
    };
    assert_eq!(policy.behind_gateway(5432), Some("127.0.0.1".parse().unwrap()));
    assert_eq!(policy.behind_gateway(3128), Some("::1".parse().unwrap()));
    for port in [80, 81] {
        assert_eq!(policy.behind_gateway(port), None, "{port}");
    }
}

#[test]
fn a_policy_is_read_strictly() {
    let policy = allowlist(&["*.example.test:8443", "example.test"], &["192.0.2.1:22", "a.test"]);
    let text = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    assert!(serde_json::from_str::<Policy>(&text.replace("allow_cidrs", "allow_cidr")).is_err());
}
