"""Runs an evaluation whose tool calls execute in a guest. The model is a mock, so no account is needed.

    pip install '.[inspect]'    # in a checkout
    python examples/inspect_eval.py
"""

import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import bash
from inspect_ai.util import SandboxEnvironmentSpec

from pyro_mcp.integrations.inspect import PyroSandboxConfig

# The replies of the mock model: a tool call, then an answer.
outputs = [
    ModelOutput.for_tool_call("mockllm/model", "bash", {"command": "uname -s -r; echo $(($(cat question)))"}),
    ModelOutput.from_content("mockllm/model", "It is 42."),
]
for output in outputs:
    # Without usage, Inspect would count tokens with a table that it has to download.
    output.usage = ModelUsage()
model = get_model("mockllm/model", custom_outputs=outputs)

task = Task(
    dataset=[Sample(input="What is in the file, as a number?", target="42", files={"question": "6 * 7"})],
    solver=[use_tools(bash(timeout=60)), generate()],
    scorer=includes(),
    sandbox=SandboxEnvironmentSpec("pyro", PyroSandboxConfig(environment="debian:12", ttl_seconds=300)),
)

with tempfile.TemporaryDirectory() as logs:
    [log] = eval(task, model=model, log_dir=logs, display="none")
    if log.error or not log.samples or not log.results:
        raise SystemExit(f"{log.status}: {log.error.message if log.error else 'no sample'}")
    for message in log.samples[0].messages:
        if message.role == "tool":
            print(f"the guest said: {message.text.strip()}")
    print(f"the model said: {log.samples[0].output.completion}")
    print(f"accuracy: {log.results.scores[0].metrics['accuracy'].value}")
