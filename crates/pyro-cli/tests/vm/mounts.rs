//! Live directories: directories of the host in guests.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::harness::{LONG, Sandbox, kill, wait_until};

/// A directory to mount, next to a file that no guest may reach.
fn project(sandbox: &Sandbox) -> PathBuf {
    let project = sandbox.path("project");
    fs::create_dir_all(project.join("dir")).unwrap();
    fs::write(project.join("dir/file"), "content\n").unwrap();
    fs::write(sandbox.path("secret"), "secret\n").unwrap();
    project
}

fn mount(host: &Path, rest: &str) -> String {
    format!("{}:{rest}", host.display())
}

#[test]
fn a_live_directory_is_read_by_all_users_and_changed_only_if_that_was_asked_for() {
    let sandbox = Sandbox::new();
    let project = project(&sandbox);
    symlink("../secret", project.join("link")).unwrap();
    // Reading takes the rights of the user of this host, whichever user of the guest reads.
    fs::write(project.join("private"), "private\n").unwrap();
    fs::set_permissions(project.join("private"), fs::Permissions::from_mode(0o600)).unwrap();
    let read_only = mount(&project, "/mnt/project");
    let line = "cat /mnt/project/dir/file; cat /mnt/project/link 2>&1; ls /mnt/project/..; \
                echo x 2>&1 >/mnt/project/new; mount -o remount,rw /mnt/project; echo x 2>&1 >/mnt/project/new";
    let ended = sandbox.run(["--mount", &*read_only, "--timeout-seconds", "60"], line);
    let shown = String::from_utf8_lossy(&ended.stdout);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], "content", "{ended:?}");
    assert_eq!(
        lines[1], "cat: /mnt/project/link: No such file or directory",
        "a link is followed in the guest"
    );
    assert_eq!(lines[2], "project");
    assert_eq!(shown.matches("Read-only file system").count(), 2, "{shown}");
    assert!(!project.join("new").exists());
    let flags = ["--mount", &*read_only, "--timeout-seconds", "60", "--user", "nobody"];
    let ended = sandbox
        .run(flags, "id -un; cat /mnt/project/private; ls /mnt/project; echo x 2>&1 >>/mnt/project/private");
    let shown = String::from_utf8_lossy(&ended.stdout);
    assert!(shown.starts_with("nobody\nprivate\ndir\nlink\nprivate\n"), "{ended:?}");
    assert!(shown.trim_end().ends_with("Read-only file system"), "{ended:?}");
    assert_eq!(fs::read(project.join("private")).unwrap(), b"private\n");

    let writable = mount(&project, "/mnt/project:rw,uid=65534");
    let line = "cd /mnt/project && stat -c %u dir/file && cp dir/file copy && chmod 4711 copy && mkdir -p a/b && mv copy a/b";
    let flags = ["--mount", &*writable, "--timeout-seconds", "60", "--user", "nobody"];
    let ended = sandbox.run(flags, line);
    assert_eq!(ended.success(), "65534\n");
    let made = fs::metadata(project.join("a/b/copy")).unwrap();
    let own = fs::metadata(&project).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (own.uid(), 0o711));
    assert_eq!(fs::read(project.join("a/b/copy")).unwrap(), b"content\n");
    sandbox.wait_until_clean();
}

#[test]
fn commands_start_in_a_live_directory_and_from_it() {
    let sandbox = Sandbox::new();
    let project = project(&sandbox);
    fs::write(project.join("program"), "#!/bin/sh\necho \"$0 in $(pwd)\"\n").unwrap();
    fs::set_permissions(project.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let workspace = mount(&project, "/workspace:rw");
    let home = mount(&project, "/root");
    let task = sandbox.task(["--mount", &*workspace, "--mount", &*home]);
    // The default working directory, and one below it whose name the guest's kernel must look up.
    assert_eq!(task.exec([], "pwd; cat dir/file").success(), "/workspace\ncontent\n");
    for _ in 0..3 {
        fs::rename(project.join("dir"), project.join("moved")).unwrap();
        fs::rename(project.join("moved"), project.join("dir")).unwrap();
        let ended =
            task.exec(["--cwd", "/workspace/dir", "--env", "PATH=/workspace:/bin"], "cat file; program");
        assert_eq!(ended.success(), "content\n/workspace/program in /workspace/dir\n");
    }
    let missing = task.exec(["--cwd", "/workspace/missing"], "true");
    assert!(missing.stderr.contains("/workspace/missing"), "{missing:?}");
    let argv = task.exec(["--argv", "--env", "PATH=/workspace:/bin"], "program");
    assert_eq!(argv.success(), "/workspace/program in /workspace\n");

    let file = sandbox.path("file");
    fs::write(&file, "copied\n").unwrap();
    for to in ["dir", "copy"] {
        let to = format!("{}:/workspace/{to}", task.id);
        sandbox.pyro(["task", "cp", file.to_str().unwrap(), &to]).success();
    }
    for name in ["dir/file", "copy"] {
        assert_eq!(fs::read(project.join(name)).unwrap(), b"copied\n");
    }
    task.call("stop", []).success();
    task.call("start", []).success();
    assert_eq!(task.exec(["--cwd", "/workspace/dir"], "cat file").success(), "copied\n");
    task.delete();
}

#[test]
fn a_task_keeps_its_live_directories_over_a_restart_and_loses_them_on_request() {
    let sandbox = Sandbox::new();
    let project = project(&sandbox);
    let other = sandbox.path("other");
    fs::create_dir(&other).unwrap();
    let first = mount(&project, "/workspace/project:rw");
    let task = sandbox.task(["--mount", &*first]);
    let second = mount(&other, "/mnt/other");
    assert_eq!(task.call("mount", [&*second]).success(), format!("Mounted: {second}:ro\n"));
    fs::write(project.join("dir/file"), "changed\n").unwrap();
    fs::write(other.join("new"), "new\n").unwrap();
    wait_until(LONG, "the change in the guest", || {
        let read = task.exec([], "cat /workspace/project/dir/file /mnt/other/new; true");
        read.stdout == b"changed\nnew\n"
    });
    // Git locks, renames, maps, and links files.
    let git = "cd project && git init -q && git -c user.name=x -c user.email=x@example.test commit -q --allow-empty -m one \
               && git add . && git status --porcelain && perl -e 'use Fcntl qw(:flock); open(F, q(>lock)); \
               flock(F, LOCK_EX | LOCK_NB) or die' && ln lock hard && sync";
    let ended = task.exec(["--timeout-seconds", "120"], git);
    assert_eq!(ended.success(), "A  dir/file\n");
    assert_eq!(fs::metadata(project.join("hard")).unwrap().nlink(), 2);

    task.call("stop", []).success();
    assert!(sandbox.processes().is_empty(), "the servers end with the guest");
    task.call("start", []).success();
    let mounts = task.status()["mounts"].clone();
    assert_eq!((&mounts[0]["writable"], &mounts[1]["guest"]), (&true.into(), &"/mnt/other".into()));
    assert_eq!(task.exec([], "cat /mnt/other/new").success(), "new\n");
    task.exec([], "sleep 100 >/dev/null 2>&1 </workspace/project/dir/file & cd project && echo end >end")
        .success();
    task.call("unmount", ["/workspace/project"]).success();
    assert_eq!(fs::read(project.join("end")).unwrap(), b"end\n");
    assert_eq!(task.exec([], "ls project; mount | grep -c fuse.pyro").success(), "1\n");
    task.call("stop", []).success();
    fs::remove_dir_all(&other).unwrap();
    let start = task.call("start", []);
    assert!(start.stderr.contains("the directory is not there any more"), "{start:?}");
    task.call("unmount", ["/mnt/other"]).success();
    task.call("start", []).success();
    task.delete();
}

#[test]
fn a_live_directory_whose_server_is_killed_is_shown_as_lost_until_it_is_mounted_again() {
    let sandbox = Sandbox::new();
    let project = project(&sandbox);
    let mounted = mount(&project, "/mnt/project:rw");
    let task = sandbox.task(["--mount", &*mounted]);
    assert!(task.status().get("lost_mounts").is_none());
    let kill_server = || {
        let server = sandbox.wait_for_process("server", |process| process.has_argument("mount-server"));
        kill(server.pid, Signal::KILL);
        wait_until(LONG, "the loss on record", || task.status()["lost_mounts"][0] == "/mnt/project");
    };
    kill_server();
    let text = task.call("status", []);
    assert!(text.success().contains("(lost: unmount it, then mount it again)"), "{text:?}");
    let read = task.exec([], "cat /mnt/project/dir/file");
    assert!(read.stderr.contains("cat: /mnt/project/dir/file: "), "{read:?}");
    task.call("unmount", ["/mnt/project"]).success();
    task.call("mount", [&*mounted]).success();
    assert!(task.status().get("lost_mounts").is_none());
    assert_eq!(task.exec([], "cat /mnt/project/dir/file").success(), "content\n");
    kill_server();
    let stopped = task.call("stop", []);
    let expected = "what the guest wrote to /mnt/project last may be missing on this host: the server of the directory has ended";
    assert!(stopped.success().contains(expected), "{stopped:?}");
    task.delete();
}

#[test]
fn a_mount_point_behind_a_link_is_the_directory_that_it_leads_to() {
    let sandbox = Sandbox::new();
    let project = project(&sandbox);
    let task = sandbox.task([]);
    task.exec([], "mkdir -p up/real; ln -s /workspace/up/real /mnt/link; ln -s /proc /mnt/proc").success();
    let attach = |rest: &str| sandbox.pyro(["task", "mount", &task.id, &mount(&project, rest)]);
    attach("/mnt/link").success();
    task.exec([], "ls up/real/dir && grep ' /workspace/up/real fuse.pyro ' /proc/mounts").success();
    for (rest, reason) in [
        (
            "/workspace/up/real/below",
            "mounts cannot be nested: a directory of the host is mounted on /mnt/link",
        ),
        ("/mnt/proc/sys", "/proc/sys: its symbolic links lead there"),
    ] {
        let refused = attach(rest);
        assert!(refused.error().contains(reason), "{refused:?}");
    }
    assert!(!project.join("below").exists(), "nothing is made where nothing is mounted");
    // The link leads elsewhere now, and the directory above is renamed.
    task.exec([], "mkdir /mnt/other; ln -sfn /mnt/other /mnt/link; mv up renamed").success();
    sandbox.pyro(["task", "unmount", &task.id, "/mnt/link"]).success();
    assert_eq!(task.exec([], "grep -c fuse.pyro /proc/mounts; ls renamed/real").stdout, b"0\n");
    task.delete();
}

#[test]
fn files_trees_and_links_move_to_a_live_directory_and_back() {
    let sandbox = Sandbox::new();
    let project = project(&sandbox);
    let mounted = mount(&project, "/mnt/project:rw");
    let task = sandbox.task(["--mount", &*mounted]);
    let move_file = |from: &str, to: &str| {
        let from = format!("{}:{from}", task.id);
        sandbox.pyro(["task", "file", "move", &from, to])
    };
    let make = "mkdir -p tree/a && echo text >tree/a/file && ln tree/a/file tree/hard && ln -s a/file tree/link && \
                ln -s /nowhere tree/a/dangling && chown -h 12:34 tree/link tree/a/file && chmod 640 tree/a/file && \
                chmod 750 tree/a && touch -h -d @1000000000 tree/link tree/a/file && ln -s tree link && mkfifo fifo";
    task.exec([], make).success();
    for path in ["tree", "link"] {
        move_file(path, &format!("/mnt/project/{path}")).success();
    }
    let at = |path: &str| fs::symlink_metadata(project.join("tree").join(path)).unwrap();
    assert_eq!(fs::read(project.join("tree/link")).unwrap(), b"text\n");
    assert_eq!(fs::read_link(project.join("tree/a/dangling")).unwrap(), Path::new("/nowhere"));
    assert_eq!(fs::read_link(project.join("link")).unwrap(), Path::new("tree"));
    assert_eq!((at("link").mtime(), at("a/file").mtime()), (1_000_000_000, 1_000_000_000));
    assert_eq!((at("a").mode() & 0o7777, at("a/file").mode() & 0o7777), (0o750, 0o640));
    assert_eq!((at("hard").ino(), at("hard").uid()), (at("a/file").ino(), at("").uid()));

    // A live directory has no FIFOs. Nothing of the copy stays.
    let refused = move_file("fifo", "/mnt/project/fifo");
    assert!(refused.error().contains("fifo: Operation not permitted"), "{refused:?}");
    for path in ["tree", "link"] {
        move_file(&format!("/mnt/project/{path}"), &format!("back-{path}")).success();
    }
    let names: Vec<_> = fs::read_dir(&project).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["dir"]);
    let shown = task.exec([], "ls; cat back-tree/link; stat -c %h:%Y back-tree/hard; readlink back-link");
    assert_eq!(shown.success(), "back-link\nback-tree\nfifo\ntext\n2:1000000000\ntree\n");
    task.delete();
}

#[test]
fn a_live_directory_is_unmounted_whatever_the_guest_does_to_its_proc() {
    let sandbox = Sandbox::new();
    let project = project(&sandbox);
    let mounted = mount(&project, "/mnt/project:rw");
    let task = sandbox.task(["--mount", &*mounted]);
    task.exec([], "mkdir own && mount -t proc own own").success();
    let is_mounted = "grep -c fuse.pyro own/mounts";
    // One of them is the list that the agent sees.
    let endless =
        "for list in /proc/[0-9]*/mountinfo; do mount --bind /dev/zero $list || :; done 2>/dev/null";
    for change in [endless, "umount -l /proc"] {
        task.exec([], &format!("{change}; echo end >/mnt/project/end")).success();
        assert_eq!(task.exec([], is_mounted).success(), "1\n");
        task.call("unmount", ["/mnt/project"]).success();
        assert_eq!(fs::read(project.join("end")).unwrap(), b"end\n");
        fs::remove_file(project.join("end")).unwrap();
        assert_eq!(task.exec([], is_mounted).stdout, b"0\n");
        task.call("mount", [&*mounted]).success();
    }
    task.delete();
}
