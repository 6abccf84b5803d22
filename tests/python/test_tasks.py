"""Tasks, with the synchronous client."""

import os
import pathlib
import socket

import pytest

from pyro_mcp import Pyro, PyroValueError

ENVIRONMENT = "debian:12"


def test_shells(pyro):
    with pyro.task(ENVIRONMENT) as task:
        shell = task.shell_open(columns=100)["shell_id"]
        cursor = 0

        def until(text):
            nonlocal cursor
            shown = ""
            while text not in shown:
                output = task.shell_read(shell, cursor=cursor, wait_seconds=60, format="plain")
                assert output["reason"] == "output", shown
                shown, cursor = shown + output["text"], output["cursor"]

        until("# ")
        task.shell_write(shell, "x=käse\n")
        task.shell_write(shell, "echo $x; stty size\n")
        until("\nkäse\n30 100\n")
        assert task.shell_resize(shell, columns=80, rows=24)["columns"] == 80
        task.shell_write(shell, "stty size", keys=["Enter"])
        until("\n24 80\n")
        output = task.shell_write(shell, "# quiet", keys=["Enter"], wait_seconds=60, idle_seconds=1)
        assert "# quiet" in output["text"] and output["reason"] == "idle"
        assert "käse" in task.shell_read(shell, format="screen")["text"]
        with task.shell_attach(shell, input=b"exit 7\n") as stream:
            assert "käse" in "".join(chunk.text for chunk in stream)
        assert task.shell_read(shell, cursor=output["cursor"], wait_seconds=60, idle_seconds=59)["exit_code"] == 7
        assert [(entry["shell_id"], entry["running"]) for entry in task.shell_list()["shells"]] == [(shell, False)]
        with pytest.raises(RuntimeError, match="has ended with exit code 7"):
            task.shell_write(shell, "more")
        with pytest.raises(ValueError, match="has no shell 99"):
            task.shell_close(99)

        # A signal reaches the program of a shell.
        shell = task.shell_open(argv=["sh", "-c", "trap 'echo caught' USR1; echo begun; while :; do sleep 0.1; done"])["shell_id"]
        cursor = 0
        until("begun\n")
        assert task.shell_signal(shell, "USR1")["running"] is True
        until("caught\n")
        closed = task.shell_close(shell)
        assert (closed["running"], closed["outcome"]) == (False, "killed")
        assert task.exec("! pgrep -f 'echo [c]aught'")["exit_code"] == 0


def test_a_service_is_followed_and_published(pyro):
    with pyro.task(ENVIRONMENT) as task:
        server = (
            "exec perl -MIO::Socket::INET -e '$| = 1; $server = IO::Socket::INET->new(Listen => 5, LocalPort => 80) or die; "
            "print qq(serving\\n); while ($client = $server->accept) { print $client qq(hi\\n); print qq(served\\n) }'")
        started = task.service_start("web", server, ready_tcp=80, publish=["0:80"])
        assert started["state"] == "ready"
        (published,) = task.status()["published_ports"]
        assert published["guest_port"] == 80
        with socket.create_connection(("127.0.0.1", published["host_port"])) as client:
            assert client.makefile().readline() == "hi\n"
        with task.service_follow("web") as stream:
            shown = ""
            for chunk in stream:
                shown += chunk.text
                # The check that it is ready, and the host's connection.
                if shown == "serving\n" + 2 * "served\n":
                    task.service_stop("web")
            assert stream.result["state"] == "stopped"
        with task.service_follow("web", tail=1) as stream:
            assert "".join(chunk.text for chunk in stream) == "served\n"


def test_a_directory_is_mounted_and_unmounted(pyro, tmp_path):
    (tmp_path / "file").write_text("content\n")
    with pyro.task(ENVIRONMENT) as task:
        mounted = task.mount(tmp_path, "/mnt/here", writable=True, uid=65534)["mounts"]
        assert [(mount["host"], mount["guest"], mount["writable"]) for mount in mounted] == [(str(tmp_path), "/mnt/here", True)]
        assert task.exec("cat /mnt/here/file; echo made > /mnt/here/new; stat -c %u /mnt/here", user="nobody")["stdout"] == "content\n65534\n"
        assert (tmp_path / "new").read_text() == "made\n"
        assert not task.unmount("/mnt/here").get("mounts")
        assert task.exec("ls -A /mnt/here; grep -c /mnt/here /proc/mounts")["stdout"] == "0\n"


def test_task_methods(pyro, tmp_path):
    with pyro.task(ENVIRONMENT, disk_mib=1024) as task:
        assert task.status()["disk_mib"] == 1024
        first = task.exec("echo hi > note; pwd")
        assert (first["sequence"], first["stdout"], first["cwd"]) == (1, "/workspace\n", "/workspace")
        assert task.exec("exit 7")["exit_code"] == 7
        assert task.exec("sleep 100", timeout_seconds=1)["exit_code"] == 124

        assert (task.read_file("note"), task.read_text("note")) == (b"hi\n", "hi\n")
        data = bytes(range(256)) * 1000
        assert task.write_file("a/b/data", data)["bytes"] == len(data)
        assert task.read_file("a/b/data") == data
        task.write_file("run.sh", "#!/bin/sh\necho käse", executable=True)
        assert task.exec("./run.sh")["stdout"] == "käse\n"
        assert task.read_text("/proc/sys/kernel/ostype") == "Linux\n"
        with pytest.raises(ValueError, match="/workspace/nothing: No such file"):
            task.read_file("nothing")

        task.make_directory("d/e")
        task.write_file("d/e/f", "12345")
        assert [entry["path"] for entry in task.list_files("d", recursive=True)["entries"]] == ["e", "e/f"]
        assert (task.stat("d/e/f")["size_bytes"], task.stat("d")["kind"]) == (5, "directory")
        task.move_file("d/e/f", "d/g")
        with pytest.raises(ValueError, match="d/e: File exists"):
            task.move_file("d/g", "d/e")
        seen = []

        def on_progress(event):
            seen.append(event["type"])
            if event["type"] == "watching":
                task.remove_file("d/g")

        changes = task.watch_files("d", timeout_seconds=60, idle_seconds=0, on_progress=on_progress)
        assert (changes["changes"], changes["reason"]) == ([{"change": "removed", "path": "g"}], "idle")
        assert seen == ["watching", "file_change"]
        assert task.watch_files("d", timeout_seconds=0.1)["reason"] == "time"
        task.remove_file("d", recursive=True)

        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/leaf").write_bytes(b"\0leaf")
        assert task.copy_to(tmp_path / "tree", "tree")["entries"] == 2
        assert task.copy_from("tree", tmp_path / "back")["bytes"] == 5
        assert (tmp_path / "back/leaf").read_bytes() == b"\0leaf"

        detached = task.detach("echo begun; sleep 100", timeout_seconds=200)
        sequence = detached["sequence"]
        with task.follow(sequence) as output:
            assert next(output).text == "begun\n"
        with pytest.raises(TimeoutError):
            task.wait(sequence, timeout_seconds=0.2)
        assert task.logs(sequence=sequence)["entries"][0]["outcome"] == "running", "nobody ended it"
        assert task.kill(sequence)["outcome"] == "killed"
        assert task.wait(sequence)["outcome"] == "killed"

        logs = task.logs()
        assert logs["count"] == len(logs["entries"]) == sequence
        assert [entry["sequence"] for entry in logs["entries"]] == list(range(1, sequence + 1))

        assert task.extend(ttl_seconds=3600)["ttl_seconds"] == 3600
        assert task.stop()["state"] == "stopped"
        with pytest.raises(RuntimeError, match="must be in 'started' state before task_exec"):
            task.exec("true")
        assert task.start()["state"] == "started"
        assert pyro.open_task(task.task_id).exec("cat note")["stdout"] == "hi\n"
        assert [entry["task_id"] for entry in pyro.list_tasks()["tasks"]] == [task.task_id]
    assert pyro.list_tasks()["count"] == 0
    with pytest.raises(ValueError, match=f"task '{task.task_id}' does not exist"):
        task.status()


def test_writing_over_a_file_keeps_its_mode_and_owner(pyro):
    with pyro.task(ENVIRONMENT) as task:
        task.exec("printf '#!/bin/sh\\necho 1\\n' > s.sh; chmod 750 s.sh; chown daemon s.sh; ln -s s.sh l; mkfifo fifo")
        task.write_file("s.sh", "#!/bin/sh\necho 2\n")
        assert task.exec("stat -c '%a %U' s.sh; ./s.sh")["stdout"] == "750 daemon\n2\n"
        task.write_file("l", "#!/bin/sh\necho 3\n")
        assert task.exec("stat -c '%a %U' s.sh; ./s.sh; readlink l")["stdout"] == "750 daemon\n3\ns.sh\n"
        assert task.read_text("/sys/kernel/mm/transparent_hugepage/enabled" if task.exec(
            "test -e /sys/kernel/mm/transparent_hugepage/enabled")["exit_code"] == 0 else "/sys/kernel/uevent_seqnum")
        with pytest.raises(PyroValueError, match="fifo is neither a regular file nor a directory"):
            task.read_file("fifo")


def test_holes_are_copied_as_holes(pyro, tmp_path):
    disk, back = tmp_path / "disk.img", tmp_path / "back.img"
    with disk.open("wb") as file:
        file.truncate(6 << 30)
        file.seek(3 << 30)
        file.write(b"x")
    with pyro.task(ENVIRONMENT) as task:
        assert task.copy_to(disk, "disk.img")["bytes"] == 6 << 30
        size, used = task.exec("stat -c %s disk.img; du -m disk.img | cut -f 1")["stdout"].split()
        assert (int(size), int(used) < 10) == (6 << 30, True)
        task.copy_from("disk.img", back)
    assert back.stat().st_size == 6 << 30 and back.stat().st_blocks < 10 << 11
    with back.open("rb") as file:
        file.seek(3 << 30)
        assert file.read(2) == b"x\0"


def test_what_is_left_out_of_a_copy_is_named(pyro, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tree / "control"))
    with pyro.task(ENVIRONMENT) as task:
        copied = task.copy_to(tree, "tree")
        assert copied["left_out_examples"] == [f"{tree}/control: a socket"]
        with pytest.raises(PyroValueError, match="control: a socket"):
            task.copy_to(tree, "tree", strict=True)
        task.exec("cd tree; mkfifo fifo; ln -s /etc out")
        copied = task.copy_from("tree", tmp_path / "back")
        assert sorted(copied["left_out_examples"]) == ["tree/fifo: a fifo", "tree/out: a symlink that leads out of the copy"]
        with pytest.raises(PyroValueError, match="tree/fifo: a fifo"):
            task.copy_from("tree", tmp_path / "back", strict=True)


def test_limits_and_paths_of_other_types(pyro):
    with pyro.task(ENVIRONMENT) as task:
        ran = task.exec("pwd", timeout_seconds=19.5, cwd=pathlib.Path("/etc"))
        assert ran["stdout"] == "/etc\n"
        with pytest.raises(PyroValueError, match="timeout_seconds must be positive"):
            task.exec("true", timeout_seconds=0.0)
        with pytest.raises(PyroValueError, match="`timeout_seconds`: expected an integer, got string \"soon\""):
            task.exec("true", timeout_seconds="soon")
        for run in (task.exec, task.detach, lambda *args, **named: list(task.stream(*args, **named))):
            with pytest.raises(PyroValueError, match=r"timeout_seconds must be at most \d+, which is left of the task's lifetime"):
                run("true", timeout_seconds=601)
        assert task.exec("true", timeout_seconds=601, extends_lifetime=True)["exit_code"] == 0


def test_journal_of_many_pages_is_complete(pyro):
    with pyro.task(ENVIRONMENT) as task:
        for _ in range(3):
            task.exec("head -c 12000000 /dev/zero | tr '\\0' x")
        entries = task.logs()["entries"]
        assert [len(entry["stdout"]) for entry in entries] == [12_000_000] * 3


def test_task_outlives_its_program(sandbox):
    with Pyro() as pyro:
        task_id = pyro.create_task(environment=ENVIRONMENT)["task_id"]
        pyro.exec_task(task_id, command="echo kept > file")
    with Pyro() as pyro:
        assert pyro.exec_task(task_id, command="cat file")["stdout"] == "kept\n"
        assert pyro.delete_task(task_id) == {"task_id": task_id, "deleted": True, "reason": "explicit_delete"}


def test_error_in_the_context_deletes_the_task(pyro):
    with pytest.raises(ZeroDivisionError), pyro.task(ENVIRONMENT):
        raise ZeroDivisionError
    assert pyro.list_tasks()["count"] == 0
    with pyro.task(ENVIRONMENT) as task:
        task.delete()


def test_task_is_addressed_by_its_name_and_found_by_its_labels(pyro):
    with pyro.task(ENVIRONMENT, name="build", labels={"team": "infra"}, ttl_from="use") as task:
        assert pyro.exec_task("build", command="echo by name", timeout_seconds=60)["stdout"] == "by name\n"
        assert pyro.status_task(task.task_id[:4])["name"] == "build"
        assert pyro.list_tasks(labels=["team=infra"])["count"] == 1
        assert pyro.list_tasks(labels=["team=web"])["count"] == 0
        with pytest.raises(RuntimeError, match="task name 'build' is in use by task"):
            pyro.create_task(environment=ENVIRONMENT, name="build")
        changed = task.update(name="test", remove_labels=["team"], labels={"ci": ""})
        assert (changed["name"], changed["labels"], changed["ttl_from"]) == ("test", {"ci": ""}, "use")
        with pytest.raises(ValueError, match="task 'build' does not exist"):
            pyro.status_task("build")
