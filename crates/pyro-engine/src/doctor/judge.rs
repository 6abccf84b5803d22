//! Turns the gathered facts into a report. Pure.

use std::collections::BTreeMap;

use pyro_machine::disk::LayerTemplates;
use pyro_machine::{Firecracker, Vmm};

use super::facts::{HostFacts, VmmFacts, vmm_name};
use crate::doctor::{
    AcceleratorReport, Capabilities, DoctorReport, GuestKernelReport, KvmReport, Remedy, RootlessReport,
    RuntimeReport, VmmReport,
};
use crate::{Accelerator, Config, EnvironmentList, Error, Reader};

/// The platform that pyro runs on.
const PLATFORM: &str = "linux-x86_64";

/// The first major version of QEMU that creates processes in an emulated guest at full speed.
const QUICK_QEMU: u32 = 8;

/// The environment for whose installation the cache should have space: that of the first steps.
const ENVIRONMENT: &str = "debian:12";
/// Minimum free space for the disk of a VM, without which no run starts.
const STATE_MIB: u64 = LayerTemplates::LEAST_FREE_MIB;

/// Issues with their remedies, in order of importance.
#[derive(Debug, Default)]
struct Findings(Vec<Remedy>);

impl Findings {
    fn add(&mut self, issue: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Remedy { issue: issue.into(), remedy: remedy.into() });
    }
}

/// Builds the report for `platform`. The caller supplies `accelerator` and `environments`.
pub(crate) fn judge(
    platform: &str,
    config: &Config,
    facts: HostFacts,
    accelerator: AcceleratorReport,
    environments: Result<EnvironmentList, Error>,
) -> DoctorReport {
    let supported = platform == PLATFORM;
    let vmm = judge_vmm(config.vmm, &facts.vmm);
    let kernel_problem = facts.guest_kernel.clone().and_then(Result::err).map(|error| error.to_string());
    let accelerated = match (config.vmm, accelerator.selected.as_deref()) {
        (Vmm::Qemu, selected) => selected.is_some(),
        (Vmm::Firecracker, selected) => selected == Some("kvm"),
    };
    let runtime_ok = supported && vmm.ok && accelerated && kernel_problem.is_none();

    let mut findings = Findings::default();
    if supported {
        findings.vmm(&facts.vmm, &vmm, config);
        if let Some(problem) = &kernel_problem {
            findings.add(
                problem,
                "set PYRO_GUEST_KERNEL to a bzImage that needs no modules, or to `environment`",
            );
        }
        findings.acceleration(facts.kvm, &vmm, &accelerator, config);
        findings.state(&facts, config, environments.as_ref().ok());
        findings.building(&facts);
        if let Err(error) = &environments {
            let remedy = error.hints_for(Reader::Person).into_iter().next();
            findings.add(
                format!("the environments cannot be listed: {error}"),
                remedy.unwrap_or_else(|| "`pyro env list` shows the whole error".to_owned()),
            );
        }
    } else {
        findings.add(
            format!("platform '{}' is not supported", platform.escape_debug()),
            format!("use {PLATFORM}, the only supported platform"),
        );
    }

    let reason = (!runtime_ok).then(|| match (vmm.ok, kernel_problem) {
        (false, _) => vmm.note.clone(),
        (true, Some(problem)) => problem,
        (true, None) if config.vmm == Vmm::Firecracker => {
            format!("Firecracker needs KVM: {}", accelerator.reason)
        }
        (true, None) => accelerator.reason.clone(),
    });
    let guest_kernel = GuestKernelReport {
        image: config.guest_kernel.as_ref().map(|image| image.display().to_string()),
        release: facts.guest_kernel.and_then(Result::ok),
    };
    let runtime = supported.then(|| runtime(config, &vmm, runtime_ok, reason, environments));
    DoctorReport {
        platform: platform.to_owned(),
        runtime_ok,
        issues: findings.0.iter().map(|finding| finding.issue.clone()).collect(),
        kvm: facts.kvm,
        networking: facts.networking,
        runtime,
        accelerator,
        vmm,
        guest_kernel,
        environment_build: facts.build,
        rootless: facts.rootless,
        confinement: facts.confinement,
        disk: facts.disk,
        remedies: findings.0,
    }
}

fn runtime(
    config: &Config,
    vmm: &VmmReport,
    works: bool,
    reason: Option<String>,
    environments: Result<EnvironmentList, Error>,
) -> RuntimeReport {
    let (catalog_version, environments) = match environments {
        Ok(list) => (list.catalog_version, list.environments),
        Err(_) => ("unknown".to_owned(), Vec::new()),
    };
    let mut component_versions = BTreeMap::from([("pyro".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    let component = match config.vmm {
        Vmm::Qemu => "qemu",
        Vmm::Firecracker => "firecracker",
    };
    component_versions.extend(vmm.version.clone().map(|version| (component.to_owned(), version)));
    RuntimeReport {
        capabilities: Capabilities {
            supports_vm_boot: works,
            supports_guest_exec: works,
            supports_guest_network: works,
            reason,
        },
        catalog_version,
        cache_dir: config.cache_dir.display().to_string(),
        environments,
        component_versions,
    }
}

fn judge_vmm(vmm: Vmm, facts: &VmmFacts) -> VmmReport {
    let program = facts.program.as_ref().map(|path| path.display().to_string());
    let (version, note) = match &facts.answer {
        None => (None, "no VMM was found".to_owned()),
        Some(Err(problem)) => (None, format!("the VMM does not work: {problem}")),
        Some(Ok(text)) if vmm == Vmm::Firecracker => match Firecracker::version(text) {
            None => (None, "unexpected output of `--version`: expected that of Firecracker".to_owned()),
            Some(version) if !Firecracker::is_supported(version) => {
                let (major, minor) = Firecracker::MIN_VERSION;
                (None, format!("Firecracker {version} is too old: expected {major}.{minor} or later"))
            }
            Some(version) => (Some(version.to_owned()), String::new()),
        },
        Some(Ok(text)) => match qemu_version(text) {
            None => (None, "unexpected output of `--version`: expected that of QEMU".to_owned()),
            Some((major, version)) if major < QUICK_QEMU => (
                Some(version.to_owned()),
                // Measured on one machine with 7.2 and 10.0.
                format!(
                    "QEMU before {QUICK_QEMU} creates processes slowly without KVM: about 24 ms each, \
                     compared with 4 ms in QEMU 10"
                ),
            ),
            Some((_, version)) => (Some(version.to_owned()), String::new()),
        },
    };
    VmmReport { ok: version.is_some(), program, version, note }
}

/// Returns the major version and the full version from the output of `qemu --version`.
fn qemu_version(text: &str) -> Option<(u32, &str)> {
    let (_, rest) = text.split_once("QEMU emulator version ")?;
    let version = rest.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?;
    let major = version.split('.').next()?.parse().ok()?;
    Some((major, version))
}

impl Findings {
    fn vmm(&mut self, facts: &VmmFacts, vmm: &VmmReport, config: &Config) {
        if vmm.ok {
            return;
        }
        if config.vmm == Vmm::Firecracker {
            const REMEDY: &str = "get a release from https://github.com/firecracker-microvm/firecracker/releases and \
                                  set PYRO_FIRECRACKER to its executable, or unset PYRO_VMM to use QEMU";
            let issue = match (&config.firecracker_program, &facts.program) {
                (Some(program), None) => {
                    format!("the configured VMM {} is not an executable file", program.display())
                }
                (None, None) => format!("{} was not found in PATH", vmm_name(config.vmm)),
                (_, Some(program)) => format!("{} cannot be used: {}", program.display(), vmm.note),
            };
            return self.add(issue, REMEDY);
        }
        match (&config.vmm_program, &facts.program) {
            (Some(program), None) => self.add(
                format!("the configured VMM {} is not an executable file", program.display()),
                "set PYRO_QEMU to a QEMU executable, or unset it",
            ),
            (None, None) => self.add(
                format!("{} was not found in PATH", vmm_name(config.vmm)),
                "install QEMU (Debian and Ubuntu: apt install qemu-system-x86)",
            ),
            (_, Some(program)) => self.add(
                format!("{} cannot be used: {}", program.display(), vmm.note),
                "install a working QEMU (Debian and Ubuntu: apt install qemu-system-x86)",
            ),
        }
    }

    fn acceleration(
        &mut self,
        kvm: KvmReport,
        vmm: &VmmReport,
        accelerator: &AcceleratorReport,
        config: &Config,
    ) {
        if vmm.ok && accelerator.selected.is_none() {
            let remedy = match config.accelerator {
                Some(_) => "unset PYRO_ACCEL to let pyro choose an accelerator",
                None => "install QEMU with TCG (Debian and Ubuntu: apt install qemu-system-x86)",
            };
            self.add(format!("no accelerator can run guests: {}", accelerator.reason), remedy);
        }
        if config.vmm == Vmm::Firecracker && vmm.ok && accelerator.selected.as_deref() != Some("kvm") {
            return self.add(
                format!("Firecracker needs KVM: {}", accelerator.reason),
                "unset PYRO_VMM to use QEMU, which also emulates",
            );
        }
        if config.accelerator == Some(Accelerator::Tcg) {
            return;
        }
        if !kvm.exists {
            self.add(
                "/dev/kvm is not available on this host",
                "VMs are emulated, which is slower; to speed them up, enable virtualisation in the firmware, or \
                 nested virtualisation if this host is itself a VM",
            );
        } else if !kvm.readable || !kvm.writable {
            self.add("this user may not use /dev/kvm", "add the user to its group, kvm, and log in again");
        } else if accelerator.selected.as_deref() == Some("tcg") {
            self.add(
                format!("KVM is not used: {}", accelerator.reason),
                "VMs are emulated, which is slower; to speed them up, use a host with hardware virtualisation",
            );
        }
    }

    fn state(&mut self, facts: &HostFacts, config: &Config, environments: Option<&EnvironmentList>) {
        if let Some(problem) = facts.state_dir_problem {
            self.add(
                format!("the state directory {} {problem}", config.base_dir.display()),
                "use a directory that only you can write to (mode 0700)",
            );
        }
        let mut space = |free: Option<u64>, least: u64, what: &str, directory: String| {
            if let Some(free) = free.filter(|free| *free < least) {
                self.add(
                    format!("only {free} MiB are free for {what} in {directory}"),
                    format!("free disk space: at least {least} MiB should be free"),
                );
            }
        };
        let disk = facts.disk;
        let mut environments = environments.into_iter().flat_map(|list| &list.environments);
        // A run builds nothing then.
        let build_mib = match environments.any(|known| known.name == ENVIRONMENT && known.installed) {
            true => 0,
            false => pyro_env::build_space_mib(ENVIRONMENT).unwrap_or_default(),
        };
        space(disk.cache_dir_free_mib, build_mib, "environments", config.cache_dir.display().to_string());
        space(disk.state_dir_free_mib, STATE_MIB, "VMs", config.base_dir.display().to_string());
    }

    fn building(&mut self, facts: &HostFacts) {
        if facts.build.mmdebstrap.is_none() {
            self.add(
                "environments cannot be built: mmdebstrap was not found in PATH",
                "install it (Debian and Ubuntu: apt install mmdebstrap)",
            );
        }
        if facts.build.keyring.is_none() {
            self.add(
                "environments cannot be built: the Debian archive keys are missing",
                "install them (Debian and Ubuntu: apt install debian-archive-keyring)",
            );
        }
        let RootlessReport { euid, user_namespaces, subuid, newuidmap } = facts.rootless;
        if euid == 0 {
            return;
        }
        if !user_namespaces {
            let remedy = match &facts.user_namespaces_allowed_by {
                Some(setting) => format!("allow them (sudo sysctl -w {setting})"),
                None => "use a kernel with user namespaces (CONFIG_USER_NS)".to_owned(),
            };
            self.add("environments cannot be built by this user: user namespaces are not allowed", remedy);
        }
        if !subuid {
            self.add(
                "environments cannot be built by this user: /etc/subuid has no range for the user",
                "add a range (sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \"$USER\")",
            );
        }
        if !newuidmap {
            self.add(
                "environments cannot be built by this user: newuidmap was not found in PATH",
                "install it (Debian and Ubuntu: apt install uidmap)",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::super::facts::VmmProblem;
    use super::*;
    use crate::Environment;
    use crate::ErrorKind;
    use crate::Hint;
    use crate::doctor::{BuildReport, DiskReport};
    use crate::guest_kernel::GuestKernelError;

    fn config() -> Config {
        Config {
            search_path: OsString::from("/usr/bin"),
            ..Config::new(
                "/home/me/.local/state/pyro".into(),
                "/home/me/.cache/pyro".into(),
                "/usr/bin/pyro".into(),
            )
        }
    }

    fn good_facts() -> HostFacts {
        HostFacts {
            kvm: KvmReport { exists: true, readable: true, writable: true },
            vmm: VmmFacts {
                program: Some(PathBuf::from("/usr/bin/qemu-system-x86_64")),
                answer: Some(Ok("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright".to_owned())),
            },
            build: BuildReport {
                mmdebstrap: Some("/usr/bin/mmdebstrap".to_owned()),
                keyring: Some("/usr/share/keyrings/debian-archive-keyring.gpg".to_owned()),
            },
            rootless: RootlessReport { euid: 1000, user_namespaces: true, subuid: true, newuidmap: true },
            disk: DiskReport {
                state_dir_free_mib: Some(9000),
                cache_dir_free_mib: Some(9000),
                vms_used_mib: 0,
                state_dir_used_mib: 0,
            },
            ..HostFacts::default()
        }
    }

    fn accelerator(selected: Option<&str>, reason: &str) -> AcceleratorReport {
        AcceleratorReport {
            selected: selected.map(str::to_owned),
            reason: reason.to_owned(),
            measured_ms: Some(2.5),
            kvm_costs: None,
            cached: false,
        }
    }

    fn catalog() -> Result<EnvironmentList, Error> {
        Ok(EnvironmentList { catalog_version: "2.1.0".to_owned(), environments: Vec::new() })
    }

    fn report(facts: HostFacts, accelerator: AcceleratorReport) -> DoctorReport {
        let report = judge(PLATFORM, &config(), facts, accelerator, catalog());
        let issues: Vec<&String> = report.remedies.iter().map(|remedy| &remedy.issue).collect();
        assert_eq!(report.issues.iter().collect::<Vec<_>>(), issues);
        report
    }

    #[test]
    fn a_good_host() {
        let mut report = report(good_facts(), accelerator(Some("kvm"), "KVM works at full speed"));
        if let Some(runtime) = &mut report.runtime {
            runtime.component_versions.insert("pyro".to_owned(), "[version]".to_owned());
        }
        insta::assert_json_snapshot!(report);
    }

    #[test]
    fn a_guest_kernel_that_cannot_be_used_is_the_reason() {
        let config = Config { guest_kernel: Some("/k".into()), ..config() };
        let judge = |kernel: Result<&str, &str>| {
            let not_bz_image = |image: &str| GuestKernelError::NotBzImage { image: image.into() };
            let guest_kernel = Some(kernel.map(str::to_owned).map_err(not_bz_image));
            let facts = HostFacts { guest_kernel, ..good_facts() };
            judge(PLATFORM, &config, facts, accelerator(Some("kvm"), ""), catalog())
        };
        let good = judge(Ok("6.12.9-pyro"));
        let expected =
            GuestKernelReport { image: Some("/k".to_owned()), release: Some("6.12.9-pyro".to_owned()) };
        assert_eq!((good.runtime_ok, good.guest_kernel), (true, expected));
        let bad = judge(Err("/k"));
        assert_eq!((bad.runtime_ok, bad.guest_kernel.release), (false, None));
        assert_eq!(bad.issues, ["the guest kernel /k is not a bzImage"]);
        assert_eq!(bad.runtime.unwrap().capabilities.reason.as_ref(), bad.issues.first());
    }

    fn on_firecracker(vmm: VmmFacts, accelerator: AcceleratorReport) -> DoctorReport {
        let config = Config { vmm: Vmm::Firecracker, ..config() };
        judge(PLATFORM, &config, HostFacts { vmm, ..good_facts() }, accelerator, catalog())
    }

    fn firecracker(answer: &str) -> VmmFacts {
        VmmFacts { program: Some("/opt/firecracker".into()), answer: Some(Ok(answer.to_owned())) }
    }

    #[test]
    fn firecracker_is_checked_where_it_is_chosen() {
        let kvm = || accelerator(Some("kvm"), "");
        let good = on_firecracker(firecracker("Firecracker v1.12.1\n\n2026"), kvm());
        assert!(good.runtime_ok && good.issues.is_empty(), "{:?}", good.issues);
        let runtime = good.runtime.unwrap();
        assert_eq!(runtime.component_versions["firecracker"], "1.12.1");
        assert!(runtime.capabilities.supports_vm_boot);

        let missing = on_firecracker(VmmFacts::default(), kvm());
        assert_eq!((missing.runtime_ok, &*missing.issues[0]), (false, "firecracker was not found in PATH"));
        assert!(missing.remedies[0].remedy.contains("github.com/firecracker-microvm/firecracker/releases"));
        for (answer, issue) in [
            ("Firecracker v1.9.0", "Firecracker 1.9.0 is too old: expected 1.12 or later"),
            (
                "QEMU emulator version 10.0.2",
                "unexpected output of `--version`: expected that of Firecracker",
            ),
        ] {
            let bad = on_firecracker(firecracker(answer), kvm());
            assert!(!bad.runtime_ok);
            assert_eq!(bad.issues, [format!("/opt/firecracker cannot be used: {issue}")]);
        }
    }

    #[test]
    fn firecracker_does_not_emulate() {
        let slow = accelerator(Some("tcg"), "KVM here emulates guest kernels");
        let report = on_firecracker(firecracker("Firecracker v1.12.1"), slow);
        assert!(!report.runtime_ok);
        assert_eq!(report.issues, ["Firecracker needs KVM: KVM here emulates guest kernels"]);
        assert_eq!(report.runtime.unwrap().capabilities.reason.as_ref(), report.issues.first());
    }

    #[test]
    fn a_host_that_has_nothing() {
        let facts = HostFacts {
            rootless: RootlessReport { euid: 1000, ..Default::default() },
            ..HostFacts::default()
        };
        let report = report(facts, accelerator(None, "no VMM to run guest code with"));
        assert!(!report.runtime_ok);
        insta::assert_json_snapshot!(report.remedies);
    }

    #[test]
    fn an_emulated_host_works_and_says_why_it_is_slow() {
        let report = report(good_facts(), accelerator(Some("tcg"), "KVM here emulates guest kernels"));
        assert!(report.runtime_ok);
        assert_eq!(report.issues, ["KVM is not used: KVM here emulates guest kernels"]);
    }

    #[test]
    fn emulation_by_choice_is_no_issue() {
        let config = Config { accelerator: Some(Accelerator::Tcg), ..config() };
        let facts = HostFacts { kvm: KvmReport::default(), ..good_facts() };
        let report = judge(PLATFORM, &config, facts, accelerator(Some("tcg"), "as configured"), catalog());
        assert!(report.runtime_ok);
        assert_eq!(report.issues, Vec::<String>::new());
    }

    #[test]
    fn another_platform_has_no_runtime() {
        let report =
            judge("macos-arm64", &config(), good_facts(), accelerator(Some("kvm"), "fine"), catalog());
        assert!(!report.runtime_ok && report.runtime.is_none());
        assert_eq!(report.issues, ["platform 'macos-arm64' is not supported"]);
    }

    #[test]
    fn a_failing_catalog_is_an_issue_and_not_the_end() {
        let error =
            Error::new(ErrorKind::EnvironmentUnavailable, "the cache is damaged").hint(Hint::FreeCache);
        let report = judge(PLATFORM, &config(), good_facts(), accelerator(Some("kvm"), "fine"), Err(error));
        assert!(report.runtime_ok);
        assert_eq!(report.remedies[0].issue, "the environments cannot be listed: the cache is damaged");
        assert_eq!(report.remedies[0].remedy, "free some space or use another cache directory");
    }

    /// What is installed is not built.
    #[test]
    fn space_for_an_environment_is_needed_only_until_it_is_installed() {
        let mut facts = good_facts();
        facts.disk.cache_dir_free_mib = Some(5);
        let cache = pyro_env::CacheConfig {
            cache_dir: "/home/me/.cache/pyro".into(),
            mirror: None,
            search_path: OsString::new(),
        };
        let cache = pyro_env::EnvironmentCache::new(cache);
        let issues = |name: &str, installed: bool| {
            let known = crate::convert::environment(cache.inspect(name).unwrap());
            let known = Environment { installed, ..known };
            let list = EnvironmentList { catalog_version: "2.1.0".to_owned(), environments: vec![known] };
            judge(PLATFORM, &config(), facts.clone(), accelerator(Some("kvm"), "fine"), Ok(list)).issues
        };
        assert_eq!(issues("debian:12", true), Vec::<String>::new());
        for (name, installed) in [("debian:12", false), ("debian:12-build", true)] {
            assert_eq!(
                issues(name, installed),
                ["only 5 MiB are free for environments in /home/me/.cache/pyro"]
            );
        }
    }

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        for (text, expected) in [
            ("QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7+deb12u14)\n", Some((7, "7.2.19"))),
            ("QEMU emulator version 10.0.2 (qemu-10.0.2-1.fc42)", Some((10, "10.0.2"))),
            ("QEMU emulator version 9.1.50-dirty", Some((9, "9.1.50"))),
            ("QEMU emulator version x", None),
            ("", None),
        ] {
            assert_eq!(qemu_version(text), expected, "{text}");
        }
    }

    #[test]
    fn an_old_vmm_works_and_its_cost_is_noted() {
        let mut facts = good_facts();
        facts.vmm.answer = Some(Ok("QEMU emulator version 7.2.19".to_owned()));
        let report = report(facts, accelerator(Some("kvm"), "fine"));
        assert!(report.vmm.ok && report.runtime_ok);
        assert!(report.vmm.note.contains("24 ms"), "{}", report.vmm.note);
    }

    proptest! {
        #[test]
        fn whatever_the_host_each_issue_has_one_remedy(
            platform in "linux-x86_64|.{0,12}",
            kvm: [bool; 3],
            rootless: [bool; 4],
            answer in proptest::option::of(proptest::result::maybe_ok("QEMU emulator version [0-9.]{1,6}|.{0,20}", ".{0,9}")),
            selected in proptest::option::of("kvm|tcg"),
            free in proptest::option::of(0u64..4000),
        ) {
            let mut facts = good_facts();
            facts.kvm = KvmReport { exists: kvm[0], readable: kvm[1], writable: kvm[2] };
            let euid = if rootless[0] { 0 } else { 1000 };
            facts.rootless =
                RootlessReport { euid, user_namespaces: rootless[1], subuid: rootless[2], newuidmap: rootless[3] };
            facts.vmm.program = answer.as_ref().map(|_| PathBuf::from("/qemu"));
            facts.vmm.answer = answer.map(|answer| answer.map_err(VmmProblem::Lost));
            facts.disk.cache_dir_free_mib = free;
            let report = judge(&platform, &config(), facts, accelerator(selected.as_deref(), "why"), catalog());
            prop_assert_eq!(report.runtime_ok, platform == PLATFORM && report.vmm.ok && selected.is_some());
            prop_assert!(report.runtime_ok || !report.issues.is_empty());
            prop_assert_eq!(report.issues.len(), report.remedies.len());
            for (issue, remedy) in report.issues.iter().zip(&report.remedies) {
                prop_assert_eq!(issue, &remedy.issue);
                prop_assert!(!remedy.remedy.is_empty());
            }
        }
    }
}
