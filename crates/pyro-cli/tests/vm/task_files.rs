//! Copies files into tasks and out of them.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::process::Signal;

use crate::harness::{PYRO, Sandbox};

fn copy(sandbox: &Sandbox, from: &str, to: &str) -> crate::harness::Ended {
    sandbox.pyro(["task", "cp", from, to])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_directory_goes_in_and_comes_back() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let tree = sandbox.path("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("sub/script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("sub/script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(tree.join("large"), vec![0xa5; 5 << 20]).unwrap();
    symlink("sub/script", tree.join("link")).unwrap();

    let there = format!("{}:", task.id);
    assert!(
        copy(&sandbox, text(&tree), &format!("{there}project")).success().starts_with("Copied: 6 entries")
    );
    assert_eq!(
        task.exec([], "cd project && ./link && stat -c '%A %U' sub/script && ls").success(),
        "ran\n-rwxr-xr-x root\nlarge\nlink\nsub\n"
    );
    // Into an existing directory, under its own name; relative to the workspace unless absolute.
    copy(&sandbox, text(&tree.join("large")), &format!("{there}project/sub")).success();
    copy(&sandbox, text(&tree.join("sub/script")), &format!("{there}/usr/local/bin/tool")).success();
    assert_eq!(task.exec([], "wc -c < project/sub/large; tool").success(), "5242880\nran\n");

    let back = sandbox.path("back");
    copy(&sandbox, &format!("{there}project"), text(&back)).success();
    assert_eq!(fs::read(back.join("sub/large")).unwrap(), vec![0xa5; 5 << 20]);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("sub/script"));
    assert_eq!(fs::metadata(back.join("sub/script")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(back.join("sub/empty").is_dir());
    // Again: replaced and merged.
    task.exec([], "echo new > project/sub/script; rm -r project/sub/empty").success();
    copy(&sandbox, &format!("{there}project/."), text(&back)).success();
    assert_eq!(fs::read_to_string(back.join("project/sub/script")).unwrap(), "new\n");
    task.delete();
}

#[test]
fn a_copy_over_a_file_keeps_its_mode_and_owner() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let there = format!("{}:", task.id);
    let made =
        "printf old >s.sh; chmod 750 s.sh; chown daemon:daemon s.sh; ln -s s.sh l; mkdir t; cp -a s.sh t";
    task.exec([], made).success();
    let tree = sandbox.path("tree");
    fs::create_dir_all(&tree).unwrap();
    let source = tree.join("s.sh");
    let stat = "stat -c '%a %U %G' s.sh; ./s.sh; readlink l";
    for (word, to, as_stream) in
        [("1", "s.sh", false), ("2", "l", false), ("3", "s.sh", true), ("4", "l", true)]
    {
        fs::write(&source, format!("#!/bin/sh\necho {word}\n")).unwrap();
        let target = format!("{there}{to}");
        if as_stream {
            let mut copying = sandbox.program(PYRO);
            copying.args(["task", "cp", "-", &target]).stdin(fs::File::open(&source).unwrap());
            assert!(copying.status().unwrap().success());
        } else {
            copy(&sandbox, text(&source), &target).success();
        }
        assert_eq!(task.exec([], stat).success(), format!("750 daemon daemon\n{word}\ns.sh\n"));
    }
    // Also in a tree, and in a directory that the file is copied into.
    for (from, to) in [(&tree, "t/../t/."), (&source, "t")] {
        copy(&sandbox, text(from), &format!("{there}{to}")).success();
    }
    assert_eq!(task.exec(["--cwd", "t"], "stat -c '%a %U' s.sh; ./s.sh").success(), "750 daemon\n4\n");
    task.delete();
}

/// Neither its size nor its holes take time or space.
#[test]
fn a_sparse_file_is_copied_both_ways_with_its_holes() {
    const SIZE: u64 = 6 << 30;
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let (disk, back) = (sandbox.path("disk.img"), sandbox.path("back.img"));
    let file = fs::File::create(&disk).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"x", SIZE / 2).unwrap();
    copy(&sandbox, text(&disk), &format!("{}:disk.img", task.id)).success();
    let line = "stat -c %s disk.img; [ $(du -m disk.img | cut -f1) -lt 16 ] && echo small; \
                dd if=disk.img bs=1 skip=3G count=1 status=none";
    assert_eq!(task.exec([], line).success(), format!("{SIZE}\nsmall\nx"));
    copy(&sandbox, &format!("{}:disk.img", task.id), text(&back)).success();
    let copied = fs::metadata(&back).unwrap();
    assert_eq!(copied.len(), SIZE);
    assert!(copied.blocks() * 512 < 16 << 20, "{} blocks", copied.blocks());
    let mut around = [0xff; 3];
    fs::File::open(&back).unwrap().read_exact_at(&mut around, SIZE / 2 - 1).unwrap();
    assert_eq!(&around, b"\0x\0");
    // Without any data at all.
    task.exec([], "truncate -s 3G empty.img").success();
    copy(&sandbox, &format!("{}:empty.img", task.id), text(&back)).success();
    assert_eq!(fs::metadata(&back).unwrap().len(), 3 << 30);
    task.delete();
}

#[test]
fn what_a_guest_has_cannot_reach_beyond_the_copy() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec(
        [],
        "mkdir t t/d; cd t; ln -s /etc/passwd absolute; ln -s ../../outside up; ln -s d/f inside; \
        echo x > d/f; chmod 6777 d/f; mkfifo fifo; mknod device c 1 3; ln d/f hard; ln -s /workspace loop",
    )
    .success();
    let target = sandbox.path("target");
    fs::create_dir(&target).unwrap();
    let copied = copy(&sandbox, &format!("{}:t", task.id), text(&target));
    let report = copied.success();
    assert!(report.starts_with("Copied: 5 entries, 4 bytes\nLeft out: 5\n"), "{report}");
    let mut names: Vec<_> =
        fs::read_dir(target.join("t")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d", "hard", "inside"]);
    // What the umask of this process leaves of 0777, as for the directory that the test made.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&target.join("t/d/f")), mode(&target));
    let kept = sandbox.path("kept");
    let words = ["task", "cp", "--preserve-mode", &format!("{}:t", task.id), text(&kept)];
    sandbox.pyro(words).success();
    assert_eq!(mode(&kept.join("d/f")), 0o777);

    // Links in the place of the copy are replaced, not followed.
    let victim = sandbox.path("victim");
    fs::write(&victim, "untouched").unwrap();
    fs::remove_file(target.join("t/hard")).unwrap();
    symlink(&victim, target.join("t/hard")).unwrap();
    copy(&sandbox, &format!("{}:t", task.id), text(&target)).success();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(target.join("t/hard")).unwrap(), "x\n");
    task.delete();
}

#[test]
fn a_bomb_is_refused() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec(
        ["--timeout-seconds", "120"],
        "truncate -s 1T sparse; mkdir many; cd many; i=0; while [ $i -lt 300 ]; do : > $i; i=$((i+1)); done",
    )
    .success();
    let target = sandbox.path("target");
    let refused = copy(&sandbox, &format!("{}:sparse", task.id), text(&target));
    assert!(refused.error().contains("the files are too large"), "{refused:?}");
    assert!(!target.exists());
    let refused =
        sandbox.pyro(["task", "cp", "--max-entries", "200", &format!("{}:many", task.id), text(&target)]);
    assert!(
        refused.error().contains("too many files, directories and symlinks: the maximum is 200"),
        "{refused:?}"
    );
    task.delete();
}

#[test]
fn what_cannot_be_copied_is_told() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let there = format!("{}:", task.id);
    let missing = copy(&sandbox, &format!("{there}nope"), text(&sandbox.path("x")));
    assert!(
        missing.error().contains("in the VM: cannot examine /workspace/nope: No such file"),
        "{missing:?}"
    );
    let device = copy(&sandbox, &format!("{there}/dev/null"), text(&sandbox.path("x")));
    assert!(device.error().contains("is neither a regular file nor a directory"), "{device:?}");
    assert!(!sandbox.path("x").exists());
    // What the kernel makes up has no end, and is different when it is read again.
    let mounted =
        "mkdir -p t/p t/s; echo x > t/file; mount -t proc proc t/p && mount -t sysfs sysfs t/s && ls t/p t/s";
    task.exec([], mounted).success();
    let tree = sandbox.path("tree");
    let copied = sandbox.pyro(["task", "cp", "--json", &format!("{there}t"), text(&tree)]).json();
    let left_out = copied["left_out_examples"].as_array().unwrap_or_else(|| panic!("{copied}"));
    let mut left_out: Vec<_> = left_out.iter().map(|name| name.as_str().unwrap()).collect();
    left_out.sort_unstable();
    assert_eq!(left_out, ["t/p: belongs to the kernel", "t/s: belongs to the kernel"], "{copied}");
    assert_eq!(
        fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(),
        ["file"]
    );
    let absent = copy(&sandbox, text(&sandbox.path("absent")), &there.replace(':', ":a"));
    assert!(absent.error().contains("cannot be read"), "{absent:?}");
    let nowhere = copy(&sandbox, "/etc/hostname", &format!("{there}no/such/place"));
    assert!(nowhere.error().contains("in the VM: "), "{nowhere:?}");
    assert!(copy(&sandbox, "/etc/hostname", "/tmp").usage_error().contains("must be in a task"));
    task.call("stop", []).success();
    assert!(
        copy(&sandbox, "/etc/hostname", &format!("{there}a")).error().contains("must be in 'started' state")
    );
    task.delete();
}

#[test]
fn a_file_goes_in_and_out_as_a_stream() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let there = format!("{}:", task.id);
    // More than all buffers on the way, of a size that is not known at first.
    let bytes: Vec<u8> = (0..3_000_001u32).map(|number| (number >> 8) as u8).collect();
    let source = sandbox.path("source");
    fs::write(&source, &bytes).unwrap();
    let mut copying = sandbox.program(PYRO);
    copying.args(["task", "cp", "-", &format!("{there}copy")]).stdin(fs::File::open(&source).unwrap());
    let copied = copying.output().unwrap();
    assert_eq!(
        String::from_utf8(copied.stdout).unwrap(),
        "Copied: 1 entry, 3000001 bytes\n",
        "{:?}",
        copied.stderr
    );

    let target = sandbox.path("target");
    let mut copying = sandbox.program(PYRO);
    copying.args(["task", "cp", &format!("{there}copy"), "-"]).stdout(fs::File::create(&target).unwrap());
    assert!(copying.status().unwrap().success());
    assert!(fs::read(&target).unwrap() == bytes);

    let refused = sandbox.pyro(["task", "cp", &there, "-"]);
    assert!(refused.error().contains("not a regular file"), "{refused:?}");
    // The workspace itself.
    let back = sandbox.path("back");
    sandbox.pyro(["task", "cp", &there, text(&back)]).success();
    assert!(fs::read(back.join("copy")).unwrap() == bytes);

    let strict =
        sandbox.pyro(["task", "cp", "--strict", &format!("{there}/dev"), text(&sandbox.path("dev"))]);
    assert!(
        strict.error().contains("left out of the copy") && strict.error().contains(": a device"),
        "{strict:?}"
    );
    task.delete();
}

#[test]
fn files_are_looked_at_and_changed_without_a_shell() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let at = |path: &str| format!("{}:{path}", task.id);
    let file = |words: &[&str]| sandbox.pyro(["task", "file"].into_iter().chain(words.iter().copied()));
    file(&["mkdir", &at("a/b")]).success();
    task.exec([], "echo text > a/b/file; chmod 640 a/b/file; ln -s b a/link").success();
    let stat = file(&["stat", &at("a/b/file"), "--json"]).success().to_owned();
    let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
    assert_eq!((&stat["file"]["kind"], &stat["file"]["size_bytes"]), (&"file".into(), &5.into()), "{stat}");
    assert_eq!((&stat["file"]["mode"], &stat["file"]["uid"]), (&"0640".into(), &0.into()), "{stat}");
    let list = file(&["list", "--recursive", &at("a")]).success().to_owned();
    let names: Vec<_> = list.lines().filter_map(|line| line.split('Z').nth(1)).collect();
    assert_eq!(names, [" b/", " link -> b", " b/file"], "{list}");

    file(&["move", &at("a/b/file"), "a/moved"]).success();
    let refused = file(&["move", &at("a/moved"), "a/link"]);
    assert!(refused.stderr.contains("a/link: File exists"), "{refused:?}");
    // A directory of the image is on another layer of the guest's disk.
    file(&["move", &at("/usr/share/common-licenses"), "/usr/share/moved"]).success();
    task.exec([], "test -e /usr/share/moved/GPL-2 && test ! -e /usr/share/common-licenses").success();
    let filled = file(&["remove", &at("a")]);
    assert!(filled.stderr.contains("a: Directory not empty"), "{filled:?}");
    let needed = file(&["remove", "--recursive", &at("")]);
    assert!(needed.stderr.contains("the guest needs this directory"), "{needed:?}");
    assert_eq!(task.exec([], "cat a/moved").success(), "text\n");
    file(&["remove", "--recursive", &at("a")]).success();
    assert_eq!(file(&["list", &at("")]).success(), "");
    let missing = file(&["stat", &at("a"), "--json"]);
    assert_eq!(missing.json()["kind"], "file_failed", "{missing:?}");
    task.delete();
}

#[test]
fn changes_of_files_are_reported_while_a_command_makes_them() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let place = format!("{}:", task.id);
    let watch = sandbox.start(["task", "file", "watch", "--recursive", "--timeout-seconds", "300", &place]);
    watch.stderr.wait_for("watching");
    task.exec([], "mkdir new; echo x > new/a; mv new/a new/b").success();
    watch.stdout.wait_for("moved      new/a -> new/b\n");
    // What a build writes over the layer is seen too.
    task.exec([], "rm -r new").success();
    watch.stdout.wait_for("removed    new\n");
    watch.signal(Signal::INT);
    let ended = watch.finish();
    assert!(ended.text().contains("created    new\n"), "{ended:?}");

    let all = sandbox.start(["task", "file", "watch", "--json", "--idle-seconds", "1", &place]);
    all.stderr.wait_for("watching");
    task.exec([], "date > log").success();
    let ended = all.finish();
    let first: serde_json::Value = serde_json::from_str(ended.success().lines().next().unwrap()).unwrap();
    assert_eq!(first["path"], "log", "{first}");
    task.delete();
}

#[test]
fn files_move_between_the_file_systems_of_a_task() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let made = "mkdir -p /tmp/t/d; echo text > /tmp/t/d/file; ln /tmp/t/d/file /tmp/t/hard; ln -s d/file /tmp/t/link; \
        chmod 640 /tmp/t/hard; chown daemon:mail /tmp/t/hard; touch -d @1000000000 /tmp/t/hard /tmp/t/d; \
        truncate -s 1G /tmp/t/sparse; echo old > there";
    task.exec([], made).success();
    let rename = |option: Option<&str>, from: &str, to: &str| {
        let from = format!("{}:{from}", task.id);
        let words = ["task", "file", "move"].into_iter().chain(option);
        sandbox.pyro(words.chain([from.as_str(), to]))
    };
    rename(None, "/tmp/t", "moved").success();
    let stat = "cd moved; stat -c '%n %a %U %G %Y %h' hard; stat -c '%Y' d; cat link; du -k sparse | cut -f1; \
        test hard -ef d/file && test ! -e /tmp/t && ls -A /workspace";
    assert_eq!(
        task.exec([], stat).success(),
        "hard 640 daemon mail 1000000000 2\n1000000000\ntext\n0\nmoved\nthere\n"
    );
    // A directory of the image, within the overlay.
    rename(None, "/etc/profile.d", "/etc/profile.old").success();
    rename(None, "/etc/profile.old", "/etc/profile.d").success();
    let refused = rename(None, "/etc/hostname", "there");
    assert!(refused.error().contains("there: File exists"), "{refused:?}");
    rename(Some("--replace"), "/etc/hostname", "there").success();
    assert!(
        task.exec([], "test ! -e /etc/hostname && cat there && ls -A /workspace")
            .success()
            .contains("moved\nthere")
    );
    task.delete();
}
