use std::fs;

use crate::harness::Home;

#[test]
fn there_is_a_page_for_every_command() {
    let home = Home::new();
    let ended = home.pyro(["man", "share/man1"]);
    assert_eq!(ended.all(), "exit: 0\n--- stdout\n--- stderr\n");
    let mut names = Vec::new();
    for entry in fs::read_dir(home.path("share/man1")).unwrap() {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        assert!(text.contains(".TH "), "{text}");
        assert!(text.contains("Examples:"), "{text}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    insta::assert_snapshot!(names.join("\n"), @r"
    pyro-bench.1
    pyro-completions.1
    pyro-demo-ollama.1
    pyro-demo.1
    pyro-doctor.1
    pyro-env-inspect.1
    pyro-env-list.1
    pyro-env-prune.1
    pyro-env-pull.1
    pyro-env-remove.1
    pyro-env-verify.1
    pyro-env.1
    pyro-man.1
    pyro-mcp-install.1
    pyro-mcp-serve.1
    pyro-mcp.1
    pyro-rpc.1
    pyro-run.1
    pyro-task-cp.1
    pyro-task-create.1
    pyro-task-delete.1
    pyro-task-exec.1
    pyro-task-extend.1
    pyro-task-kill.1
    pyro-task-list.1
    pyro-task-logs.1
    pyro-task-mount.1
    pyro-task-publish.1
    pyro-task-shell.1
    pyro-task-start.1
    pyro-task-status.1
    pyro-task-stdin.1
    pyro-task-stop.1
    pyro-task-unmount.1
    pyro-task-unpublish.1
    pyro-task-update.1
    pyro-task-wait.1
    pyro-task.1
    pyro.1
    ");
}

#[test]
fn a_directory_that_cannot_be_is_named() {
    let home = Home::new();
    fs::write(home.path("file"), "").unwrap();
    insta::assert_snapshot!(home.pyro(["man", "file/man1"]).all(), @r"
    exit: 1
    --- stdout
    --- stderr
    [error] cannot write manual pages to file/man1
      caused by: Not a directory (os error 20)
    ");
}
