"""A child program that answers each request line on its standard input with one line of JSON."""

import json
import subprocess

from measure import at_most


class Talker:
    """Such a program. Use it in a `with` statement."""

    def __init__(self, command, env, log):
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def say(self, line):
        """Sends a line that has no answer."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self, line):
        """Sends a line and returns the answer."""
        with at_most(180):
            self.say(line)
            return json.loads(self.process.stdout.readline())
