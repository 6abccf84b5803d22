//! `pyro doctor`.

use clap::Args;
use pyro_engine::DoctorReport;
use pyro_engine::doctor::{
    AcceleratorReport, ConfinementReport, DeepReport, DiskReport, GuestKernelReport, KvmCosts,
    RootlessReport, VmmReport,
};
use serde::Serialize;

use crate::error::CliError;
use crate::exit::Exit;
use crate::reply::Reply;
use crate::text::yes_no;
use crate::{config, session};

const DOCTOR_EXAMPLES: &str = "\
The exit status is 0 even when problems are found; read `Runtime:` or, with --json, `runtime_ok`.
With --deep, it is 1 if a file was changed, can be changed by other users, or was left over.

Examples:
  pyro doctor
  pyro doctor --deep
  pyro doctor --json | jq .issues";

/// Report whether this machine can run VMs, and what to do if it cannot
///
/// Looks at the accelerator, the virtual machine monitor, rootless prerequisites, networking and disk
/// space. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Platform to report on
    #[arg(long, value_name = "PLATFORM", default_value = "linux-x86_64")]
    pub(crate) platform: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
    /// Also read all environments and templates, compare them with their digests, and look for what dead VMs have left
    /// [default: off]
    #[arg(long)]
    pub(crate) deep: bool,
}

/// The report with what was read.
#[derive(Serialize)]
struct WithDeepReport<'a> {
    #[serde(flatten)]
    report: &'a DoctorReport,
    deep: DeepReport,
}

/// Succeeds even if there are problems: scripts read `runtime_ok`. Only what `--deep` finds is a failure.
pub(crate) fn run(args: &DoctorArgs) -> Result<Reply, CliError> {
    let engine = config::engine()?;
    let report = session::block_on(async { Ok::<_, CliError>(engine.doctor(&args.platform).await) })?;
    if !args.deep {
        return Ok(Reply::of(args.json, &report, text)?);
    }
    let deep = session::block_on(engine.doctor_deep())?;
    let exit = if deep.intact { Exit::Success } else { Exit::Failure };
    let whole = WithDeepReport { report: &report, deep };
    Ok(Reply::of(args.json, &whole, |whole| text(whole.report) + &deep_text(&whole.deep))?.exit(exit))
}

fn deep_text(report: &DeepReport) -> String {
    let verdict = if report.intact { "PASS" } else { "FAIL" };
    let checks = report.checks.iter().map(|check| {
        let problem = check.problem.as_deref().unwrap_or("intact");
        format!("- {} {}: {}\n", check.subject, check.name, problem)
    });
    format!("Deep: {verdict}\n{}", checks.collect::<String>())
}

const UNKNOWN: &str = "unknown";

fn text(report: &DoctorReport) -> String {
    let mut lines = contract_lines(report);
    lines.push(accelerator(&report.accelerator));
    lines.extend(report.accelerator.kvm_costs.as_ref().map(kvm_costs));
    lines.push(vmm(&report.vmm));
    lines.push(guest_kernel(&report.guest_kernel));
    lines.push(format!(
        "Environment build: mmdebstrap={} keyring={}",
        report.environment_build.mmdebstrap.as_deref().unwrap_or("missing"),
        report.environment_build.keyring.as_deref().unwrap_or("missing"),
    ));
    lines.push(rootless(&report.rootless));
    lines.push(confinement(&report.confinement));
    lines.push(disk(&report.disk));
    lines.extend(issues(report));
    lines.join("\n") + "\n"
}

/// The lines that the public contract fixes, in their order.
fn contract_lines(report: &DoctorReport) -> Vec<String> {
    let verdict = if report.runtime_ok { "PASS" } else { "FAIL" };
    let kvm = &report.kvm;
    let mut lines = vec![
        format!("Platform: {}", report.platform),
        format!("Runtime: {verdict}"),
        format!(
            "KVM: exists={} readable={} writable={}",
            yes_no(kvm.exists),
            yes_no(kvm.readable),
            yes_no(kvm.writable)
        ),
    ];
    if let Some(runtime) = &report.runtime {
        let can = &runtime.capabilities;
        lines.push(format!("Environment cache: {}", runtime.cache_dir));
        lines.push(format!(
            "Capabilities: vm_boot={} guest_exec={} guest_network={}",
            yes_no(can.supports_vm_boot),
            yes_no(can.supports_guest_exec),
            yes_no(can.supports_guest_network)
        ));
    }
    lines.push(format!(
        "Networking: tun={} ip_forward={}",
        yes_no(report.networking.tun_available),
        yes_no(report.networking.ip_forward_enabled)
    ));
    lines
}

fn accelerator(report: &AcceleratorReport) -> String {
    let mut line = format!("Accelerator: {}", report.selected.as_deref().unwrap_or("none"));
    if !report.reason.is_empty() {
        line.push_str(&format!(" ({})", report.reason));
    }
    line
}

fn kvm_costs(costs: &KvmCosts) -> String {
    let time = |ns: f64| match ns {
        ns if ns < 100.0 => format!("{ns:.2}ns"),
        ns if ns < 100_000.0 => format!("{:.2}us", ns / 1e3),
        ns => format!("{:.2}ms", ns / 1e6),
    };
    let KvmCosts { host_loop_ns, loop_ns, paging_ns, fault_ns, exit_ns } = *costs;
    format!(
        "KVM costs: host_loop={} guest_loop={} paging={} fault={} exit={}",
        time(host_loop_ns),
        time(loop_ns),
        time(paging_ns),
        time(fault_ns),
        time(exit_ns)
    )
}

fn vmm(report: &VmmReport) -> String {
    let mut line = match &report.program {
        Some(program) => {
            let version = report.version.as_deref().unwrap_or(UNKNOWN);
            format!("VMM: {program} version={version} usable={}", yes_no(report.ok))
        }
        None => "VMM: not found".to_owned(),
    };
    if !report.note.is_empty() {
        line.push_str(&format!(" ({})", report.note));
    }
    line
}

fn guest_kernel(report: &GuestKernelReport) -> String {
    match (&report.image, &report.release) {
        (None, _) => "Guest kernel: the environment's own".to_owned(),
        (Some(image), Some(release)) => format!("Guest kernel: {image} release={release} usable=yes"),
        (Some(image), None) => format!("Guest kernel: {image} usable=no"),
    }
}

fn rootless(report: &RootlessReport) -> String {
    format!(
        "Rootless: euid={} user_namespaces={} subuid={} newuidmap={}",
        report.euid,
        yes_no(report.user_namespaces),
        yes_no(report.subuid),
        yes_no(report.newuidmap)
    )
}

fn confinement(report: &ConfinementReport) -> String {
    let Some(uid) = report.uid else { return "Confinement: unknown".to_owned() };
    let layers = report.layers.iter().map(|layer| match (layer.active, layer.note.as_str()) {
        (true, _) => format!("{}=yes", layer.name),
        (false, note) => format!("{}=no ({note})", layer.name),
    });
    let layers = layers.collect::<Vec<_>>().join(" ");
    format!("Confinement: {} uid={uid} {layers}", if report.full { "full" } else { "partial" })
}

fn disk(report: &DiskReport) -> String {
    let free = |mib: Option<u64>| mib.map_or(UNKNOWN.to_owned(), |mib| format!("{mib}MiB"));
    format!(
        "Disk: state_free={} cache_free={} state_used={}MiB vms_used={}MiB",
        free(report.state_dir_free_mib),
        free(report.cache_dir_free_mib),
        report.state_dir_used_mib,
        report.vms_used_mib
    )
}

fn issues(report: &DoctorReport) -> Vec<String> {
    if report.issues.is_empty() {
        return Vec::new();
    }
    let mut lines = vec!["Issues:".to_owned()];
    for issue in &report.issues {
        lines.push(format!("- {issue}"));
        let remedies = report.remedies.iter().filter(|remedy| remedy.issue == *issue);
        lines.extend(remedies.map(|remedy| format!("  remedy: {}", remedy.remedy)));
    }
    lines
}

#[cfg(test)]
mod tests;
