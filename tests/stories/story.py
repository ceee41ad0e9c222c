"""What the stories have in common: a user with a home of their own who types commands."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(sys.argv[1]).resolve()
PROGRAMS = pathlib.Path(sys.argv[2]).resolve()
NOBODY = 65534


class Story(unittest.TestCase):
    """Each test starts in an empty working directory with an empty home and no VARMOE_* variable."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="varmoe-story-")
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.home, self.cwd = self.root / "home", self.root / "cwd"
        self.home.mkdir(mode=0o700)
        self.cwd.mkdir()
        self.environment = {k: v for k, v in os.environ.items()
                            if not k.startswith(("VARMOE_", "XDG_")) and k != "HOME"}
        self.environment["HOME"] = str(self.home)
        self.cache = self.home / ".cache" / "varmoe"

    def run_program(self, program, *arguments, status=0, env=None, **popen):
        """Runs a program, expects the exit status and returns the finished process."""
        environment = dict(self.environment)
        for name, value in (env or {}).items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        result = subprocess.run([PROGRAMS / program, *map(str, arguments)], capture_output=True, env=environment, cwd=self.cwd,
                                timeout=240, **popen)
        result.stdout = result.stdout.decode("utf-8", "replace")
        result.stderr = result.stderr.decode("utf-8", "replace")
        self.assertEqual(result.returncode, status, f"{program} {arguments}\n{result.stdout}\n{result.stderr}")
        self.assertNotIn("a bug in", result.stderr)
        return result

    def tune(self, *arguments, **more):
        return self.run_program("varmoe-tune", *arguments, **more)

    def bench(self, *arguments, **more):
        return self.run_program("varmoe-bench", *arguments, **more)

    def lines(self, result, event):
        """The JSON lines of one event; every line must be JSON."""
        records = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertTrue(all("event" in r for r in records))
        return [r for r in records if r["event"] == event]

    def assert_says(self, result, *words):
        text = result.stdout + result.stderr
        for word in words:
            self.assertIn(word, text)

    def model(self, name):
        return SOURCE / "models" / f"{name}.json"

    def write(self, name, text):
        path = self.root / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path


def main():
    del sys.argv[1:3]
    unittest.main()
