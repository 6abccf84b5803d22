//! `/workspace`, which is a directory of the guest's own disk rather than of the overlay that its root is.

use crate::harness::Sandbox;

/// Mounts an overlay whose upper directory is in the workspace.
const OVERLAY: &str = "mkdir -p lower upper work merged && \
                       mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged";

#[test]
fn an_overlay_has_its_upper_directory_in_the_workspace() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let line = format!(
        "mkdir lower; echo below >lower/file; {OVERLAY} && echo above >merged/file && cat lower/file"
    );
    assert_eq!(task.exec([], &line).success(), "below\n");
    task.call("stop", []).success();
    task.call("start", []).success();
    let line = format!("cat upper/file; {OVERLAY} && cat merged/file && rm merged/file && ls merged");
    assert_eq!(task.exec([], &line).success(), "above\nabove\n");
    task.delete();
}

#[test]
fn a_swap_file_is_in_the_workspace() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let line = "head -c 16M /dev/zero >swap && chmod 600 swap && mkswap swap >/dev/null && swapon swap && \
                awk 'END { print $1, $3 }' /proc/swaps";
    assert_eq!(task.exec([], line).success(), "/workspace/swap 16380\n");
    // The kernel keeps the file open for writing while it swaps there.
    let stopped = task.call("stop", ["--json"]).json();
    assert!(stopped["last_error"].is_null(), "{stopped}");
    task.call("start", []).success();
    assert_eq!(task.exec([], "wc -l </proc/swaps; swapon swap && echo on").success(), "1\non\n");
    task.delete();
}

/// On the disk of an earlier version, the workspace is part of the overlay's upper directory.
#[test]
fn files_of_an_earlier_version_are_kept() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    // What such a disk has: the files in the upper directory, and no directory for the workspace.
    let earlier = "disk=$(awk '$2 == \"/workspace\" { print $1 }' /proc/mounts) && mkdir /mnt/disk && mount $disk /mnt/disk && cd /mnt/disk && mkdir -p upper/workspace/project && \
                   echo kept >upper/workspace/project/file && chmod 1777 upper/workspace && \
                   mv workspace /mnt/disk/removed && cd / && umount /mnt/disk";
    task.exec([], earlier).success();
    task.call("stop", []).success();
    for _ in 0..2 {
        task.call("start", []).success();
        let line = "cat project/file; stat -c %a .; stat -f -c %T .; ls -A";
        assert_eq!(task.exec([], line).success(), "kept\n1777\next2/ext3\nproject\n");
        task.call("stop", []).success();
    }
    task.delete();
}
