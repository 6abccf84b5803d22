"""The input of commands."""

import asyncio
import hashlib
import io
import os
import queue
import signal
import threading

import pytest

from pyro_mcp import AsyncPyro, Pyro
from pyro_mcp._feeding import PIECE, WINDOW, AsyncFeeder, Feeder, pieces

ENVIRONMENT = "debian:12"


def test_what_an_input_can_be():
    for source in (b"ab\xff", bytearray(b"ab\xff"), [b"a", b"b\xff"], io.BytesIO(b"ab\xff"), iter([b"ab", b"\xff"])):
        assert b"".join(pieces(source)) == b"ab\xff"
    assert b"".join(pieces("é")) == b"".join(pieces(io.StringIO("é"))) == "é".encode()
    for source in (5, [5], object()):
        with pytest.raises(TypeError, match="input must be bytes, text, a file, or an iterable"):
            list(pieces(source))


def test_a_thread_sends_no_more_than_it_may():
    sent, failed = queue.SimpleQueue(), queue.SimpleQueue()
    feeder = Feeder(b"x" * (WINDOW + 5), lambda data, end: sent.put((data, end)), failed.put)
    feeder.start()
    count = 0
    while count < WINDOW:
        data, end = sent.get(timeout=30)
        assert 0 < len(data) <= PIECE and not end
        count += len(data)
    assert count == WINDOW
    feeder.add(3)
    assert sent.get(timeout=30) == (b"xxx", False)
    feeder.add(100)
    assert sent.get(timeout=30) == (b"xx", False)
    assert sent.get(timeout=30) == (b"", True)

    def breaks():
        yield b"x"
        raise ZeroDivisionError
    Feeder(breaks(), lambda data, end: None, failed.put).start()
    assert isinstance(failed.get(timeout=30), ZeroDivisionError)


def test_a_loop_sends_no_more_than_it_may():
    async def source():
        yield b"x" * WINDOW
        yield "end"

    async def main():
        loop, sent, failed = asyncio.get_running_loop(), asyncio.Queue(), asyncio.Queue()

        def send(data, end):
            loop.call_soon_threadsafe(sent.put_nowait, (data, end))
        feeder = AsyncFeeder(source(), send, failed.put_nowait)
        feeder.start()
        count = 0
        while count < WINDOW:
            count += len((await sent.get())[0])
        assert count == WINDOW
        feeder.add(10)
        assert [await sent.get(), await sent.get()] == [(b"end", False), (b"", True)]
        AsyncFeeder([5], send, failed.put_nowait).start()
        assert isinstance(await failed.get(), TypeError)
    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_blocking_source_does_not_block_the_loop():
    async def main():
        loop, released, sent = asyncio.get_running_loop(), threading.Event(), asyncio.Queue()

        def source():
            assert released.wait(30)
            yield b"x"
        feeder = AsyncFeeder(source(), lambda data, end: loop.call_soon_threadsafe(sent.put_nowait, data), pytest.fail)
        feeder.start()
        # Only a loop that goes on comes here while the source waits.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        released.set()
        assert [await sent.get(), await sent.get()] == [b"x", b""]
    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_forked_child_does_not_wait_for_the_lock_of_a_feeder():
    feeder = Feeder(iter(()), lambda data, end: None, pytest.fail)
    with feeder._changed:
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            feeder.stop()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_wrong_types_are_refused_before_a_call():
    # The executable does not exist: nothing was started.
    pyro = Pyro(executable="/nonexistent")
    for source in (5, object()):
        with pytest.raises(TypeError, match="input must be"):
            pyro.exec_task("1", command="true", input=source)

    async def source():
        yield b"x"
    with pytest.raises(TypeError, match="input must be"):
        pyro.exec_task("1", command="true", input=source())
    with pytest.raises(TypeError, match="argv must be a sequence of strings"):
        pyro.exec_task("1", argv="ls -l")
    calls = [
        lambda: pyro.list_tasks(labels="team=infra"),
        lambda: pyro.create_task(environment=ENVIRONMENT, labels="team=infra"),
        lambda: pyro.create_task(environment=ENVIRONMENT, publish="8080"),
        lambda: pyro.update_task("1", remove_labels="team"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="must be a"):
            call()

    async def main():
        with pytest.raises(TypeError, match="input must be"):
            await AsyncPyro(executable="/nonexistent").exec_task("1", command="true", input=5)
    asyncio.run(main())


def test_input_of_a_command(pyro):
    data = bytes(range(256)) * 20_000
    with pyro.task(ENVIRONMENT) as task:
        whole = task.exec("sha256sum", input=io.BytesIO(data), timeout_seconds=60)
        assert whole["stdout"].split()[0] == hashlib.sha256(data).hexdigest()
        assert task.exec(argv=["cat"], input="käse\n")["stdout"] == "käse\n"
        assert task.exec("cat")["stdout"] == "", "without input, it is empty"
        # A command that takes no more ends, whatever the source would still give.
        assert task.exec("head -c 3", input=(b"x" * 100_000 for _ in range(10_000)), timeout_seconds=60)["stdout"] == "xxx"
        with task.stream("cat", input=[b"a", b"b"]) as output:
            assert b"".join(chunk.data for chunk in output) == b"ab"

        begun = threading.Event()

        def breaks():
            yield b"x"
            # A command that is cancelled before it begins is not in the journal.
            begun.wait(60)
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            task.exec("cat", input=breaks(), timeout_seconds=60, on_output=lambda _: begun.set())
        assert task.logs()["entries"][-1]["outcome"] == "killed"


def test_input_in_an_event_loop(sandbox):
    async def source():
        for number in range(3):
            await asyncio.sleep(0)
            yield f"{number}\n"

    async def main():
        async with AsyncPyro() as pyro:
            result = await pyro.run_in_vm(environment=ENVIRONMENT, argv=["cat"], input=source(), timeout_seconds=60)
            return result["stdout"]
    assert asyncio.run(main()) == "0\n1\n2\n"


def test_argument_lists_users_and_shells(pyro):
    with pyro.task(ENVIRONMENT) as task:
        assert task.exec(argv=["printf", "%s|", "a b", "$HOME", "*"])["stdout"] == "a b|$HOME|*|"
        assert task.exec("id -un; id -u", user="daemon")["stdout"] == "daemon\n1\n"
        assert task.exec("set -o pipefail; [[ a == a ]] && echo ok", shell="bash")["stdout"] == "ok\n"
        with pytest.raises(ValueError, match="command"):
            task.exec("true", argv=["true"])
