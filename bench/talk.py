"""A program that is asked on its standard input and answers on its standard output, a line of JSON each."""

import json
import subprocess

from measure import at_most


class Talker:
    """Such a program, to be used in a `with`."""

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
        """Sends a line that is not answered."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self, line):
        """Sends a line, and waits for what comes back."""
        with at_most(180):
            self.say(line)
            return json.loads(self.process.stdout.readline())
