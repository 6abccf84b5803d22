"""inspect-ai evaluations with the sandbox, and the clean-up of guests that they left."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from inspect_ai import Task, eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, solver, use_tools
from inspect_ai.tool import bash, python
from inspect_ai.util import sandbox as in_sandbox

from pyro_mcp import Pyro
from pyro_mcp.integrations.inspect import PyroSandboxEnvironment


@pytest.fixture
def nothing_left(module_sandbox, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    yield
    assert module_sandbox.machines() == []
    assert not PyroSandboxEnvironment._open
    records = module_sandbox.directory / "home" / ".local" / "state" / "pyro-inspect"
    assert not records.exists() or not list(records.iterdir())


@solver
def fails():
    async def solve(state, generate):
        await in_sandbox().exec(["true"])
        raise RuntimeError("the solver failed")
    return solve


def says(messages, tools, tool_choice, config):
    """A model that calls the tool and then answers."""
    if messages[-1].role == "tool":
        output = ModelOutput.from_content("mockllm/model", "it is 42")
    else:
        output = ModelOutput.for_tool_call("mockllm/model", "bash", {"command": "cat question; ls; id -un"})
    # Without usage, Inspect would count tokens with a table that it has to download.
    output.usage = ModelUsage()
    return output


def run(module_sandbox, solvers, samples=1, **arguments):
    task = Task(
        dataset=[
            Sample(id=str(number), input="?", target="42", files={"question": f"{number} * 7\n"}, setup="touch was-set-up")
            for number in range(samples)],
        solver=solvers, scorer=includes(), sandbox="pyro")
    model = get_model("mockllm/model", custom_outputs=says)
    return evaluate(task, model=model, log_dir=str(module_sandbox.directory / "logs"), display="none", **arguments)[0]


def test_an_evaluation(module_sandbox, nothing_left):
    log = run(module_sandbox, [use_tools(bash()), generate()], samples=2)
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1
    said = [message.text for sample in log.samples for message in sample.messages if message.role == "tool"]
    assert sorted(said) == [f"{number} * 7\nquestion\nwas-set-up\nroot\n" for number in range(2)]


def test_a_tool_that_runs_python(module_sandbox, nothing_left):
    def calls_python(messages, tools, tool_choice, config):
        if messages[-1].role == "tool":
            output = ModelOutput.from_content("mockllm/model", "it is " + messages[-1].text)
        else:
            output = ModelOutput.for_tool_call("mockllm/model", "python", {"code": "print(6 * 7)"})
        output.usage = ModelUsage()
        return output
    task = Task(
        dataset=[Sample(input="?", target="it is 42")], solver=[use_tools(python()), generate()], scorer=includes(),
        sandbox=("pyro", "debian:12-agent"))
    model = get_model("mockllm/model", custom_outputs=calls_python)
    log = evaluate(task, model=model, log_dir=str(module_sandbox.directory / "logs"), display="none")[0]
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1, log.samples[0].messages


def test_an_evaluation_that_fails(module_sandbox, nothing_left):
    log = run(module_sandbox, [fails()])
    assert log.status == "error" and "the solver failed" in log.error.message


def test_an_environment_that_does_not_exist(module_sandbox, nothing_left):
    with pytest.raises(Exception) as caught:
        run(module_sandbox, [fails()], sandbox=("pyro", "plan9:4"))
    assert "plan9:4" in str(getattr(caught.value, "message", caught.value))


# `jq` and `python3` are only in the environment that each form names.
FORMS = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.solver import solver
from inspect_ai.util import SandboxEnvironmentSpec, sandbox
from pyro_mcp.integrations.inspect import PyroSandboxConfig

@solver
def look(has_jq):
    async def solve(state, generate):
        for words in (["jq", "--version"], ["python3", "-c", "print(6 * 7)"]):
            ran = await sandbox().exec(words)
            assert ran.success == has_jq, ran
        return state
    return solve

def in_form(form, has_jq=True, **sample):
    return Task(dataset=[Sample("x", **sample)], solver=[look(has_jq)], sandbox=form)

@task
def name(): return in_form("pyro", has_jq=False)

@task
def pair(): return in_form(("pyro", "debian:12-agent"))

@task
def configuration():
    return in_form(SandboxEnvironmentSpec("pyro", PyroSandboxConfig(image="debian:12-agent", cpus=2, mem=1024)))

settings = SandboxEnvironmentSpec("pyro", PyroSandboxConfig(image="debian:12-agent"))

@task
def configuration_of_the_sample(): return in_form(None, sandbox=settings)

@task
def of_the_sample(): return in_form(None, sandbox=("pyro", "debian:12-agent"))

@task
def of_the_call(): return in_form(None)
"""


# Those that name the environment themselves, or take the default.
TASKS = ("name", "pair", "configuration", "configuration_of_the_sample", "of_the_sample")


def test_every_documented_form_works_on_the_command_line(module_sandbox, nothing_left, tmp_path):
    file = tmp_path / "forms.py"
    file.write_text(FORMS)
    everything = [f"{file.name}@{task}" for task in TASKS]
    runs = {
        "all": (everything, set(TASKS)),
        "flag": ([f"{file.name}@of_the_call", "--sandbox", "pyro:debian:12-agent"], {"of_the_call"}),
    }
    for run, (words, expected) in runs.items():
        logs = tmp_path / run
        line = [
            os.path.join(os.path.dirname(sys.executable), "inspect"), "eval", *words, "--model", "mockllm/model",
            "--display", "none", "--log-format", "json", "--log-dir", logs]
        ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended
        read = [json.loads(log.read_text()) for log in logs.glob("*.json")]
        assert {log["eval"]["task"] for log in read} == expected
        assert [log.get("error") for log in read if log["status"] != "success"] == []


def test_every_documented_form_works_in_a_call(module_sandbox, nothing_left, tmp_path):
    forms = {}
    exec(FORMS, forms)
    calls = [(forms[name](), {}) for name in TASKS]
    calls.extend((forms["of_the_call"](), {"sandbox": form}) for form in [("pyro", "debian:12-agent"), forms["settings"]])
    for task, arguments in calls:
        [log] = evaluate(task, model="mockllm/model", log_dir=str(tmp_path), display="none", **arguments)
        assert log.status == "success", (task.name, log.error)


def test_kept_guests_can_be_cleaned_up(module_sandbox, nothing_left, capsys):
    run(module_sandbox, [fails()], sandbox_cleanup=False)
    [stays] = module_sandbox.machines()
    assert f"inspect sandbox cleanup pyro {stays}" in capsys.readouterr().out
    asyncio.run(PyroSandboxEnvironment.cli_cleanup(None))
    assert capsys.readouterr().out == f"deleted task {stays}\n"


KILLED = """
import asyncio
from pyro_mcp.integrations.inspect import PyroSandboxEnvironment
async def begin():
    environments = await PyroSandboxEnvironment.sample_init("check", None, {})
    print(environments["default"]._task.task_id, flush=True)
    input()
asyncio.run(begin())
"""


def test_guests_of_a_killed_program_can_be_cleaned_up(module_sandbox, nothing_left, capsys):
    program = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    task_id = program.stdout.readline().decode().strip()
    asyncio.run(PyroSandboxEnvironment.cli_cleanup(None))
    assert capsys.readouterr().out == "", "it is in use"
    os.kill(program.pid, signal.SIGKILL)
    program.communicate()
    with Pyro() as pyro:
        assert pyro.status_task(task_id)["state"] == "started"
    asyncio.run(PyroSandboxEnvironment.cli_cleanup(None))
    assert capsys.readouterr().out == f"deleted task {task_id}\n"
    asyncio.run(PyroSandboxEnvironment.cli_cleanup(task_id))
    assert "does not exist" in capsys.readouterr().out
