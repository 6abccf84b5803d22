"""The official Python SDK, with both protocol eras: `server/discover`, and a handshake. The SDK validates every tool
result against the tool's output schema."""

import contextlib
import json
import re

import anyio
import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, CallToolResult, PromptReference, ResourceTemplateReference

from sandbox import wait_until

pytestmark = pytest.mark.anyio

ENVIRONMENT = "debian:12"
# The SDK's names for the eras, and the revision that it negotiates in each.
ERAS = {"auto": "2026-07-28", "legacy": "2025-11-25"}


class Session:
    """A client that remembers which tools it has called."""

    def __init__(self, client):
        self.client = client
        self.called = set()
        # The resource links of the last result.
        self.links = []

    async def __call__(self, tool, **arguments):
        """Makes a call that must succeed. Returns the payload, after checking that the text has the same content."""
        self.called.add(tool)
        with anyio.fail_after(90):
            result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, result
        text, *self.links = result.content
        assert json.loads(text.text) == result.structured_content
        return result.structured_content

    async def failure(self, tool, **arguments):
        """Makes a call that must fail. Returns the text for the model."""
        self.called.add(tool)
        with anyio.fail_after(90):
            result = await self.client.call_tool(tool, arguments)
        assert result.is_error, result
        return result.content[0].text


@contextlib.asynccontextmanager
async def session(server, era="auto"):
    async with Client(server.for_sdk(), mode=era) as client:
        assert client.protocol_version == ERAS[era]
        yield Session(client)


async def use_vms(call):
    ran = await call("vm_run", environment=ENVIRONMENT, command="git --version; echo why >&2; exit 3")
    assert ran["stdout"].startswith("git version ")
    assert (ran["stderr"], ran["exit_code"]) == ("why\n", 3)

    vm = await call("vm_create", environment=ENVIRONMENT, mem_mib=1024, ttl_seconds=900)
    assert (vm["state"], vm["ttl_seconds"]) == ("created", 900)
    vm_id = vm["vm_id"]
    assert (await call("vm_network_info", vm_id=vm_id))["network_enabled"] is False
    assert (await call("vm_start", vm_id=vm_id))["state"] == "started"
    assert (await call("vm_status", vm_id=vm_id))["state"] == "started"
    ran = await call("vm_exec", vm_id=vm_id, command="head -c 40000 /dev/zero | tr '\\0' x; sleep 100", timeout_seconds=6)
    assert (ran["exit_code"], ran["cleanup"]["deleted"], ran["stdout_cut_chars"]) == (124, True, 24_000)
    (link,) = call.links
    whole = await call.client.read_resource(link.uri)
    assert whole.contents[0].text == "x" * 40_000

    vm_id = (await call("vm_create", environment=ENVIRONMENT))["vm_id"]
    assert (await call("vm_start", vm_id=vm_id))["state"] == "started"
    assert (await call("vm_stop", vm_id=vm_id))["state"] == "stopped"
    assert (await call("vm_delete", vm_id=vm_id))["deleted"] is True
    assert (await call("vm_reap_expired"))["count"] == 0
    assert ENVIRONMENT in {each["name"] for each in (await call("vm_list_environments"))["result"]}


async def use_a_shell(call, task_id):
    shell_id = (await call("task_shell_open", task_id=task_id))["shell_id"]
    shell = {"task_id": task_id, "shell_id": shell_id}
    written = await call("task_shell_write", **shell, text="echo $((40 + 2))\n", wait_seconds=60, idle_seconds=3)
    assert "\n42\n" in written["text"]
    await call("task_shell_write", **shell, text="exec sleep 500\n")
    await call("task_shell_signal", **shell, signal="KILL")
    ended = await call("task_shell_read", **shell, cursor=written["cursor"], wait_seconds=60, idle_seconds=60)
    assert (ended["reason"], ended["running"]) == ("ended", False)
    await call("task_shell_close", **shell)


async def use_a_service(call, task_id):
    service = {"task_id": task_id, "name": "web"}
    argv = ["bash", "-c", "touch up; echo serving; exec sleep 500"]
    started = await call("task_service_start", **service, argv=argv, ready_file="up")
    assert started["state"] == "ready"
    (listed,) = (await call("task_service_status", task_id=task_id))["services"]
    assert listed["name"] == "web"
    assert (await call("task_service_logs", **service))["output"] == "serving\n"
    assert (await call("task_service_stop", **service))["state"] == "stopped"
    again = await call("task_service_start", **service, command="[[ $0 = bash ]] && exec sleep 500", shell="bash")
    assert again["state"] == "running"
    assert (await call("task_service_stop", **service, remove=True))["removed"] is True
    assert (await call("task_service_status", task_id=task_id))["services"] == []


async def change_files(call, task_id):
    task = {"task_id": task_id}
    # `mkdir` makes what is missing above it. `remove` refuses a directory that is not empty, unless it is `recursive`.
    await call("task_change_files", **task, action="mkdir", path="made/below")
    assert "not empty" in await call.failure("task_change_files", **task, action="remove", path="made")
    begun, seen = anyio.Event(), {}

    async def note(_seconds, _total, message):
        if message == "watching":
            begun.set()

    async def watch():
        arguments = {**task, "action": "watch", "path": "made", "recursive": True, "timeout_seconds": 80}
        result = await call.client.call_tool("task_files", arguments, progress_callback=note)
        seen.update(result.structured_content)

    with anyio.fail_after(90):
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await begun.wait()
            await call("task_change_files", **task, action="mkdir", path="made/below/new")
    assert (seen["changes"], seen["reason"]) == ([{"change": "created", "path": "below/new"}], "idle")
    await call("task_change_files", **task, action="remove", path="made", recursive=True)
    missing = await call.failure("task_files", **task, action="stat", path="made")
    assert "made: No such file" in missing and missing.endswith("code: file_failed")


async def use_a_task(call):
    task_id = (await call("task_create", environment=ENVIRONMENT))["task_id"]
    assert (await call("task_write_file", task_id=task_id, path="d/file", content="note\n"))["bytes"] == 5
    read = await call("task_exec", task_id=task_id, command="cat file; echo $WHO", cwd="d", env={"WHO": "me"})
    assert (read["stdout"], read["sequence"]) == ("note\nme\n", 1)
    binary = {"content": "AAH/", "encoding": "base64", "executable": True}
    await call("task_write_file", task_id=task_id, path="/workspace/binary", **binary)
    part = await call("task_read_file", task_id=task_id, path="/workspace/binary", offset=1, max_bytes=1)
    assert (part["content"], part["size_bytes"], part["next_offset"]) == ("\x01", 3, 2)
    assert (await call("task_read_file", task_id=task_id, path="/workspace/binary"))["content"] == "AAH/"
    await call("task_change_files", task_id=task_id, action="move", path="/workspace/binary", destination="d/binary")
    listed = await call("task_files", task_id=task_id, action="list", path="d")
    assert [entry["path"].rpartition("/")[2] for entry in listed["entries"]] == ["binary", "file"]
    stat = await call("task_files", task_id=task_id, action="stat", path="d/binary")
    assert (stat["file"]["kind"], stat["file"]["size_bytes"], stat["file"]["mode"]) == ("file", 3, "0755")

    detached = await call("task_exec", task_id=task_id, command="echo begun; sleep 500", detach=True)
    assert (detached["sequence"], detached["outcome"]) == (2, "running")
    waited = await call("task_wait", task_id=task_id, sequence=2, timeout_seconds=1)
    assert (waited["outcome"], waited["exit_code"]) == ("running", None)
    assert (await call("task_status", task_id=task_id))["command_count"] == 2
    killed = await call("task_kill", task_id=task_id, sequence=2)
    assert (killed["outcome"], killed["stdout"]) == ("killed", "begun\n")
    assert (await call("task_wait", task_id=task_id, sequence=2))["outcome"] == "killed"
    logs = await call("task_logs", task_id=task_id)
    assert [entry["sequence"] for entry in logs["entries"]] == [1, 2]
    await change_files(call, task_id)
    await use_a_shell(call, task_id)
    await use_a_service(call, task_id)

    assert (await call("task_stop", task_id=task_id))["state"] == "stopped"
    assert (await call("task_extend", task_id=task_id, ttl_seconds=900))["ttl_seconds"] == 900
    assert (await call("task_start", task_id=task_id))["state"] == "started"
    assert (await call("task_exec", task_id=task_id, command="cat d/file"))["stdout"] == "note\n"
    assert (await call("task_list"))["count"] == 1
    assert (await call("task_delete", task_id=task_id))["deleted"] is True


async def test_every_tool(server):
    for era in ERAS:
        async with session(server, era) as call:
            listed = {tool.name for tool in (await call.client.list_tools()).tools}
            await use_vms(call)
            await use_a_task(call)
            assert call.called == listed


async def test_results_are_checked_against_schemas(server):
    """The SDK rejects a result that violates the schema, so the other tests do validate results."""
    async with session(server) as call:
        for tool in (await call.client.list_tools()).tools:
            # No property takes this. Where a schema requires any, an empty result is invalid too.
            invalid = [dict.fromkeys(tool.output_schema["properties"], {"invalid": True})]
            if tool.name not in {"task_files", "task_change_files", "task_shell_read"}:
                invalid.append({})
            for content in invalid:
                with pytest.raises(RuntimeError, match="Invalid structured content"):
                    result = CallToolResult(content=[], structured_content=content)
                    await call.client.session.validate_tool_result(tool.name, result)
            with pytest.raises(RuntimeError, match="did not return structured content"):
                await call.client.session.validate_tool_result(tool.name, CallToolResult(content=[]))


@pytest.mark.parametrize("era", ERAS)
async def test_resources_prompts_and_completion(server, era):
    async with session(server, era) as call:
        client = call.client
        uris = {str(resource.uri) for resource in (await client.list_resources()).resources}
        assert {"pyro://policy", "pyro://environments/debian:12"} <= uris
        for uri in uris:
            (contents,) = (await client.read_resource(uri)).contents
            assert contents.mime_type == "application/json" and json.loads(contents.text), uri
        with pytest.raises(MCPError) as raised:
            await client.read_resource("pyro://tasks/9775b3af1eeb")
        # The error codes of the two revisions.
        assert raised.value.code == {"auto": INVALID_PARAMS, "legacy": -32002}[era]

        for template in (await client.list_resource_templates()).resource_templates:
            for name in re.findall(r"{(\w+)}", template.uri_template):
                reference = ResourceTemplateReference(type="ref/resource", uri=template.uri_template)
                values = (await client.complete(reference, {"name": name, "value": ""})).completion.values
                assert {"environment": "debian:12", "stream": "stderr"}.get(name) in [*values, None]

        for prompt in (await client.list_prompts()).prompts:
            (message,) = (await client.get_prompt(prompt.name, {"goal": "Count to three."})).messages
            assert message.role == "user" and message.content.text.startswith("Count to three.\n\n")
            reference = PromptReference(type="ref/prompt", name=prompt.name)
            given = {"name": "environment", "value": "debian:12-b"}
            assert (await client.complete(reference, given)).completion.values == ["debian:12-base", "debian:12-build"]


@pytest.mark.parametrize("era", ERAS)
async def test_error_texts_for_models(server, era):
    async with session(server, era) as call:
        assert "task_create" in call.client.instructions
        assert await call.failure("vm_run", environment=ENVIRONMENT) == "`command` is required\ncode: invalid_input"
        unknown = await call.failure("vm_run", environment="windows:11", command="ver")
        assert "windows:11" in unknown and "debian:12" in unknown
        assert "9775b3af1eeb" in await call.failure("task_status", task_id="9775b3af1eeb")
        with pytest.raises(MCPError, match="nosuch") as raised:
            await call.client.call_tool("nosuch", {})
        assert raised.value.code == INVALID_PARAMS


async def test_progress_and_cancellation(server, sandbox):
    for era in ERAS:
        async with session(server, era) as call:
            progress, begun = [], anyio.Event()

            async def note(seconds, _total, message):
                progress.append((seconds, message))
                if message == "begun":
                    begun.set()

            async def run():
                arguments = {"environment": ENVIRONMENT, "command": "echo begun; sleep 1000", "timeout_seconds": 600}
                await call.client.call_tool("vm_run", arguments, progress_callback=note)
                pytest.fail("the call was not cancelled")

            with anyio.fail_after(90):
                async with anyio.create_task_group() as group:
                    group.start_soon(run)
                    await begun.wait()
                    assert len(sandbox.machines()) == 1
                    group.cancel_scope.cancel()
            numbers = [seconds for seconds, _ in progress]
            assert numbers == sorted(set(numbers))
            assert any(message.startswith("phase=create") for _, message in progress), progress
            await anyio.to_thread.run_sync(wait_until, "end of the cancelled command's VM", lambda: not sandbox.machines())
            assert (await call("task_list"))["count"] == 0
