"""Records `pyro run -it` in tmux as an animated SVG: python3 docs/media/record.py PYRO OUTPUT

Everything in the picture was on the screen of a real session. The keys are typed at the pace of a person, and pauses are shortened.
"""

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

COLUMNS, ROWS = 88, 19
GUEST, HOST = r"root@pyro-\w+:\S+# ", r"\$ "
# What is typed, and what the last line of the screen, or with `screen` any line, then looks like.
STEPS = [
    ("pyro run -it debian:12\r", GUEST),
    ("uname -sr; id -un; nproc\r", GUEST),
    ("git init -q demo; cd demo; date > note; git status -s\r", GUEST),
    ("watch -n 1 uptime\r", ("screen", r"Every 1\.0s: uptime .*")),
    ("", ("screen", r".* up .*")),
    ("\x03", GUEST),
    ("exit\r", HOST),
    ("echo hi | pyro run -i debian:12 -- cat\r", HOST),
]
KEY_SECONDS, SAMPLE_SECONDS, PAUSE_SECONDS, END_SECONDS, LIMIT_SECONDS = 0.06, 0.03, 1.2, 4, 120

CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18, 12
FOREGROUND, BACKGROUND = "#d8dee9", "#20242c"
COLOURS = ["#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9"]


class Session:
    """A bash in a tmux of its own, and the frames that its screen has shown."""

    def __init__(self, directory, pyro):
        self.tmux = ["tmux", "-f", "/dev/null", "-S", os.path.join(directory, "tmux")]
        programs = os.path.join(directory, "bin")
        os.mkdir(programs)
        os.symlink(os.path.abspath(pyro), os.path.join(programs, "pyro"))
        self.environment = {
            **{name: value for name, value in os.environ.items() if name.startswith("PYRO_") and name != "PYRO_BASE_DIR"},
            "PATH": programs + os.pathsep + os.environ["PATH"], "HOME": directory, "LANG": "C.UTF-8", "TERM": "xterm-256color",
            "PYRO_BASE_DIR": os.path.join(directory, "state"),
        }
        self.frames = []
        # Otherwise the recording would show how long the first VM boots, which is done once.
        subprocess.run([pyro, "run", "debian:12", "--", "true"], env=self.environment, check=True, capture_output=True)
        self.call("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), "-c", directory,
                  "env", "PS1=$ ", "bash", "--noprofile", "--norc")
        self.call("set", "-g", "status", "off", ";", "resize-window", "-x", str(COLUMNS), "-y", str(ROWS))

    def call(self, *words):
        return subprocess.run([*self.tmux, *words], env=self.environment, check=True, capture_output=True, text=True).stdout

    def sample(self, typed=False):
        """Adds a frame if the screen has changed, and returns the rows as text."""
        shown = self.call("capture-pane", "-e", "-p", "-N", ";", "display-message", "-p", "#{cursor_x} #{cursor_y} #{cursor_flag}")
        *rows, cursor = shown.rstrip("\n").split("\n")
        column, row, visible = (int(number) for number in cursor.split())
        frame = (tuple(rows), (column, row) if visible else None)
        if not self.frames or self.frames[-1][-1] != frame:
            self.frames.append((time.monotonic(), typed, frame))
        return [re.sub(r"\x1b\[[0-9;]*m|\x0e|\x0f", "", line) for line in rows], row, column

    def wait(self, expected):
        anywhere, expected = expected if isinstance(expected, tuple) else (None, expected)
        start = time.monotonic()
        while time.monotonic() - start < LIMIT_SECONDS:
            rows, row, column = self.sample()
            rows = rows if anywhere else [rows[row][:column] if row < len(rows) else ""]
            if any(re.fullmatch(expected, line.ljust(column) if not anywhere else line.rstrip()) for line in rows):
                return
            time.sleep(SAMPLE_SECONDS)
        raise SystemExit(f"not shown: {expected}")

    def watch(self, seconds):
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            self.sample()
            time.sleep(SAMPLE_SECONDS)

    def type(self, text):
        for key in text:
            self.call("send-keys", "-H", f"{ord(key):02x}")
            self.sample(typed=True)


def style(codes, state):
    """Applies the numbers of an escape sequence to (foreground, background, bold, reverse)."""
    foreground, background, bold, reverse = state
    for code in codes or [0]:
        if code == 0:
            foreground, background, bold, reverse = None, None, False, False
        elif code in (1, 22):
            bold = code == 1
        elif code in (7, 27):
            reverse = code == 7
        elif 30 <= code <= 37 or 90 <= code <= 97:
            foreground = COLOURS[code % 10]
        elif 40 <= code <= 47:
            background = COLOURS[code % 10]
        elif code in (39, 49):
            foreground, background = (None, background) if code == 39 else (foreground, None)
    return foreground, background, bold, reverse


def row_markup(line):
    """Returns a row of the screen as elements of SVG, at the origin."""
    column, state, found = 0, (None, None, False, False), []
    for piece in re.split(r"(\x1b\[[0-9;]*m|[\x0e\x0f])", line):
        escape = re.fullmatch(r"\x1b\[([0-9;]*)m", piece)
        if escape:
            state = style([int(code or 0) for code in escape[1].split(";")], state)
        elif piece and piece not in "\x0e\x0f":
            foreground, background, bold, reverse = state
            if reverse:
                foreground, background = background or BACKGROUND, foreground or FOREGROUND
            left, width = column * CELL_WIDTH, len(piece) * CELL_WIDTH
            if background:
                found.append(f'<rect x="{left:.1f}" width="{width:.1f}" height="{CELL_HEIGHT}" fill="{background}"/>')
            if piece.strip():
                extra = (f' fill="{foreground}"' if foreground else "") + (' font-weight="bold"' if bold else "")
                found.append(f'<text x="{left:.1f}" y="{CELL_HEIGHT - 5}" textLength="{width:.1f}" xml:space="preserve"{extra}>{html.escape(piece)}</text>')
            column += len(piece)
    return "".join(found)


def sources(pyro):
    """Returns what a recording is of: with another of these, the picture has to be made again."""
    def answer(*words):
        return subprocess.run([pyro, *words], check=True, capture_output=True, text=True).stdout

    environment = json.loads(answer("env", "inspect", "debian:12", "--json"))
    with open(__file__, "rb") as script:
        digest = hashlib.sha256(script.read()).hexdigest()[:16]
    return f"{answer('--version').strip()}, {environment['name']} {environment['version']}, record.py {digest}"


def svg(frames, description):
    """Returns the frames as one picture: a strip that moves up by a screen for each frame."""
    durations = [
        KEY_SECONDS if frame[1] else min(later[0] - frame[0], PAUSE_SECONDS) for frame, later in zip(frames, frames[1:])
    ] + [END_SECONDS]
    total, begun = sum(durations), 0
    screen = ROWS * CELL_HEIGHT
    rows, strip, keys = {}, [], []
    for number, ((*_, (lines, cursor)), duration) in enumerate(zip(frames, durations)):
        keys.append(f"{100 * begun / total:.3f}%{{transform:translateY({-number * screen}px)}}")
        begun += duration
        for row, line in enumerate(lines[:ROWS]):
            markup = row_markup(line.rstrip() if "\x1b" not in line else line)
            if markup:
                name = rows.setdefault(markup, f"r{len(rows)}")
                strip.append(f'<use href="#{name}" y="{number * screen + row * CELL_HEIGHT}"/>')
        if cursor:
            x, y = cursor[0] * CELL_WIDTH, number * screen + cursor[1] * CELL_HEIGHT
            strip.append(f'<rect x="{x:.1f}" y="{y}" width="{CELL_WIDTH}" height="{CELL_HEIGHT}" fill="{FOREGROUND}" opacity=".5"/>')
    keys.append(f"to{{transform:translateY({-(len(frames) - 1) * screen}px)}}")
    width, height = round(COLUMNS * CELL_WIDTH + 2 * MARGIN), screen + 2 * MARGIN
    symbols = "\n".join(f'<g id="{name}">{markup}</g>' for markup, name in rows.items())
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<title>pyro run -it debian:12, in tmux</title>
<desc>{html.escape(description)}</desc>
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:{FOREGROUND};white-space:pre}}
#strip{{transform:translateY({-(len(frames) - 1) * screen}px)}}
@media (prefers-reduced-motion:no-preference){{#strip{{animation:play {total:.2f}s step-end infinite}}}}
@keyframes play{{{"".join(keys)}}}
</style>
<defs>
{symbols}
</defs>
<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>
<svg x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN}" height="{screen}">
<g id="strip">
{chr(10).join(strip)}
</g>
</svg>
</svg>
"""


def main(pyro, output):
    directory = tempfile.mkdtemp(prefix="pyro-recording-")
    try:
        session = Session(directory, pyro)
        try:
            session.wait(HOST)
            for text, expected in STEPS:
                session.type(text)
                session.wait(expected)
                session.watch(PAUSE_SECONDS)
        finally:
            session.call("kill-server")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    with open(output, "w", encoding="utf-8") as file:
        file.write(svg(session.frames, sources(pyro)))
    print(f"{output}: {len(session.frames)} frames")


if __name__ == "__main__":
    main(*sys.argv[1:])
