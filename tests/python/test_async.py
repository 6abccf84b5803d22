"""Programs with an event loop."""

import asyncio
import gc
import threading

import pytest

from pyro_mcp import AsyncPyro, PyroValueError
from sandbox import wait_until

ENVIRONMENT = "debian:12"


def test_eight_vms_at_once(sandbox):
    async def main():
        async with AsyncPyro(max_active_vms=8) as pyro:
            runs = [pyro.run_in_vm(environment=ENVIRONMENT, command=f"echo {number}", timeout_seconds=60) for number in range(8)]
            return [result["stdout"] for result in await asyncio.gather(*runs)]
    assert asyncio.run(main()) == [f"{number}\n" for number in range(8)]


def test_a_task_and_its_streams(sandbox):
    async def main():
        async with AsyncPyro() as pyro, pyro.task(ENVIRONMENT) as task:
            assert (await task.exec("echo hi"))["stdout"] == "hi\n"
            chunks = []
            async with task.stream("for i in 1 2 3; do echo $i; done") as stream:
                async for chunk in stream:
                    chunks.append(chunk.text)
            assert "".join(chunks) == "1\n2\n3\n"
            assert stream.result["exit_code"] == 0
            await task.write_file("big", b"x" * 1_000_000)
            assert len(await task.read_file("big")) == 1_000_000
            with pytest.raises(TimeoutError):
                sequence = (await task.detach("sleep 100", timeout_seconds=100))["sequence"]
                await task.wait(sequence, timeout_seconds=0.2)
            # An unfinished stream ends when it is garbage-collected.
            async for chunk in task.stream("yes", timeout_seconds=100):
                break
            del chunk
            gc.collect()
            assert (await task.wait(sequence + 1))["outcome"] == "killed"
            with pytest.raises(PyroValueError):
                await pyro.status_vm("none")
    asyncio.run(main())


def test_one_client_in_several_loops(sandbox):
    pyro = AsyncPyro()
    for _ in range(2):
        assert asyncio.run(pyro.list_tasks())["count"] == 0
    asyncio.run(pyro.close())


def test_one_client_in_two_loops_at_once(sandbox):
    """Each command waits for the other one, so they end only if both run at once."""
    pyro = AsyncPyro()
    task_id = asyncio.run(pyro.create_task(environment=ENVIRONMENT))["task_id"]
    results = {}

    def use(own, other):
        async def main():
            chunks = []
            command = f"touch {own}; until [ -e {other} ]; do sleep 0.05; done; echo {own} met {other}"
            async with pyro.open_task(task_id).stream(command, timeout_seconds=60) as stream:
                async for chunk in stream:
                    chunks.append(chunk.text)
            results[own] = ("".join(chunks), stream.result["exit_code"])
        asyncio.run(main())

    threads = [threading.Thread(target=use, args=names, daemon=True) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    assert results == {"a": ("a met b\n", 0), "b": ("b met a\n", 0)}
    asyncio.run(pyro.delete_task(task_id))
    asyncio.run(pyro.close())


def test_shells(sandbox):
    async def main():
        async with AsyncPyro() as pyro, pyro.task(ENVIRONMENT) as task:
            shell = (await task.shell_open(argv=["cat"]))["shell_id"]
            written = await task.shell_write(shell, "typed", keys=["Enter"], wait_seconds=60, idle_seconds=5, format="plain")
            assert written["text"] == "typed\ntyped\n"
            assert (await task.shell_resize(shell, columns=80, rows=24))["columns"] == 80
            chunks = []
            async with task.shell_attach(shell, input=b"more\n\x04") as stream:
                async for chunk in stream:
                    chunks.append(chunk.text)
            # The end of the input ends the stream, not the shell.
            assert "typed" in "".join(chunks)
            ended = await task.shell_read(shell, cursor=written["cursor"], wait_seconds=60, idle_seconds=59, format="plain")
            assert (ended["text"], ended["running"], ended["exit_code"]) == ("more\nmore\n", False, 0)
            other = (await task.shell_open(argv=["sleep", "500"]))["shell_id"]
            assert (await task.shell_signal(other, "WINCH"))["running"] is True
            assert (await task.shell_close(other))["outcome"] == "killed"
            assert [entry["running"] for entry in (await task.shell_list())["shells"]] == [False, False]
    asyncio.run(main())


def test_a_cancelled_call_leaves_nothing(sandbox):
    async def main():
        async with AsyncPyro() as pyro:
            begun = asyncio.Event()

            def look(event):
                if event.get("phase") == "execute":
                    begun.set()
            call = asyncio.ensure_future(
                pyro.run_in_vm(environment=ENVIRONMENT, command="sleep 100", timeout_seconds=100, on_progress=look))
            await begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            # Its VM no longer counts towards the limit.
            assert (await pyro.reap_expired())["count"] == 0
    asyncio.run(main())
    assert sandbox.machines() == []


def test_interrupted_creation_is_undone(sandbox):
    async def main():
        async with AsyncPyro() as pyro:
            await pyro.list_environments()
            under_way = pyro.manager._slot.connection._calls

            def interrupt(_):
                # The result has arrived, but has not been read yet.
                wait_until("end of the call", lambda: not under_way)
                raise KeyError("interrupted")
            with pytest.raises(KeyError):
                await pyro.create_task(environment=ENVIRONMENT, on_progress=interrupt)
            assert (await pyro.list_tasks())["count"] == 0
    asyncio.run(main())
    assert sandbox.machines() == []


def test_task_context_deletes_the_task_despite_repeated_cancellation(sandbox):
    async def main():
        async with AsyncPyro() as pyro:
            entered = asyncio.Event()

            async def use():
                async with pyro.task(ENVIRONMENT):
                    entered.set()
                    await asyncio.sleep(1000)
            using = asyncio.ensure_future(use())
            await entered.wait()
            for _ in range(3):
                using.cancel()
                # Let it continue until it waits again.
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await using
            assert (await pyro.list_tasks())["count"] == 0
    asyncio.run(main())
    assert sandbox.machines() == []


def test_nested_and_successive_event_loops(sandbox):
    from pyro_mcp import Pyro

    pyro = AsyncPyro()
    for _ in range(2):
        assert len(asyncio.run(pyro.list_environments())) == 4

    async def notebook():
        # As in a notebook, where a loop is running while cells execute.
        with Pyro() as blocking:
            return len(blocking.list_environments())
    assert asyncio.run(notebook()) == 4
    asyncio.run(pyro.close())
