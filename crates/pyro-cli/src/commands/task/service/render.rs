//! Services as text for people.

use pyro_engine::{Service, ServiceList};

use super::super::state::{cut, duration, now, one_line, table};

/// Maximum width of a command in a list.
const COMMAND_COLUMNS: usize = 40;

pub(super) fn shown(service: &Service) -> String {
    shown_at(service, now())
}

fn shown_at(service: &Service, now: f64) -> String {
    let mut lines = vec![
        format!("Service: {}", service.name),
        format!("State: {} for {}", service.state, duration(now - service.since)),
        format!("Command: {}", one_line(&service.command)),
        format!("Restart: {}", service.restart),
    ];
    if service.restarts > 0 {
        lines.push(format!("Restarts: {}", service.restarts));
    }
    if service.start_with_task {
        lines.push("Starts with its task: yes".to_owned());
    }
    if let Some(code) = service.exit_code {
        lines.push(format!("Exit code: {code}"));
    }
    if let Some(reason) = &service.reason {
        lines.push(format!("Reason: {}", one_line(reason)));
    }
    if let Some(output) = &service.last_output {
        lines.push("Last output:".to_owned());
        lines.extend(output.to_text().lines().map(|line| format!("    {line}")));
    }
    lines.join("\n") + "\n"
}

pub(super) fn listed(list: &ServiceList) -> String {
    listed_at(list, now())
}

fn listed_at(list: &ServiceList, now: f64) -> String {
    if list.services.is_empty() {
        return "No services found.\n".to_owned();
    }
    let mut rows =
        vec![["NAME", "STATE", "READY", "RESTARTS", "SINCE", "COMMAND"].map(str::to_owned).to_vec()];
    rows.extend(list.services.iter().map(|service| {
        let ready = match service.ready {
            None => "-",
            Some(true) => "yes",
            Some(false) => "no",
        };
        vec![
            service.name.clone(),
            service.state.to_string(),
            ready.to_owned(),
            service.restarts.to_string(),
            duration(now - service.since),
            cut(&one_line(&service.command), COMMAND_COLUMNS),
        ]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use pyro_engine::{RestartPolicy, ServiceState, VmId};

    use super::*;

    fn web() -> Service {
        Service {
            task_id: VmId::parse("9775b3af1eeb").unwrap(),
            name: "web".to_owned(),
            command: "python3 -m http.server".to_owned(),
            state: ServiceState::Ready,
            ready: Some(true),
            restarts: 0,
            exit_code: None,
            reason: None,
            since: 100.0,
            restart: RestartPolicy::No,
            start_with_task: false,
            last_output: None,
        }
    }

    #[test]
    fn a_service_is_shown_with_what_is_wrong_with_it() {
        let failed = Service {
            state: ServiceState::Failed,
            ready: Some(false),
            restarts: 3,
            exit_code: Some(1),
            reason: Some("not ready within 60 seconds: connection refused".to_owned()),
            restart: RestartPolicy::OnFailure,
            start_with_task: true,
            last_output: Some(b"first\nOSError: Address already in use\n".to_vec().into()),
            ..web()
        };
        insta::assert_snapshot!(shown_at(&web(), 165.0), @r"
        Service: web
        State: ready for 1m5s
        Command: python3 -m http.server
        Restart: no
        ");
        insta::assert_snapshot!(shown_at(&failed, 165.0), @r"
        Service: web
        State: failed for 1m5s
        Command: python3 -m http.server
        Restart: on-failure
        Restarts: 3
        Starts with its task: yes
        Exit code: 1
        Reason: not ready within 60 seconds: connection refused
        Last output:
            first
            OSError: Address already in use
        ");
    }

    #[test]
    fn a_list_has_a_line_for_each_service() {
        let worker = Service {
            name: "worker".to_owned(),
            command: format!("first\n{}", "x".repeat(100)),
            state: ServiceState::Restarting,
            ready: None,
            restarts: 12,
            ..web()
        };
        let list = ServiceList { task_id: web().task_id, services: vec![web(), worker], count: 2 };
        insta::assert_snapshot!(listed_at(&list, 3800.0), @r"
        NAME    STATE       READY  RESTARTS  SINCE  COMMAND
        web     ready       yes    0         1h1m   python3 -m http.server
        worker  restarting  -      12        1h1m   first\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
        ");
        let none = ServiceList { services: Vec::new(), count: 0, ..list };
        assert_eq!(listed_at(&none, 0.0), "No services found.\n");
    }
}
