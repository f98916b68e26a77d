"""The terminal of a run: what is drawn fits, is plain where it shall be, keeps nobody waiting."""

import io
import json
import threading

import pytest

from runtime.__main__ import main
from runtime.control.sight import Figure, Sight, Stop
from runtime.pages.live.terminal import BAD, Screen, line, lines
from tests.runtime.stand_ins.served import MAX_WAIT_S

FIGURES = [
    Figure("instruction", "touch the red marker"),
    Figure("rate", "9.9 of 10 Hz"),
    Figure("misses", "3: 2 ticks dropped, 1 held", True),
]
STAGES = {"vision": 31.24, "prefix": None, "suffix": 2.0, "anchor": None}


def sight(**more):
    given = {"title": "touch-red-1", "figures": FIGURES, "stages": STAGES, "pictures": {}}
    return Sight(**{**given, "actions": {}, **more})


class Scene:
    """Shows what it is set to."""

    def __init__(self, shown=None):
        self.shown = shown or sight()

    def look(self):
        return self.shown


class Terminal(io.StringIO):
    """Keeps what stands on it, by the few sequences that are used."""

    def __init__(self, is_terminal=True):
        super().__init__()
        self.is_terminal, self.rows, self.at, self.looks = is_terminal, [""], 0, []

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        super().write(text)
        while text:
            if text.startswith("\x1b["):
                body = text[2:]
                end = next(i for i, c in enumerate(body) if c.isalpha())
                self._obey(body[:end], body[end])
                text = body[end + 1 :]
            elif text[0] == "\n":
                self.at, text = self.at + 1, text[1:]
                self.rows += [""] * (self.at + 1 - len(self.rows))
                self.column = 0
            else:
                row = self.rows[self.at]
                self.rows[self.at] = row[: self.column] + text[0] + row[self.column + 1 :]
                self.column, text = self.column + 1, text[1:]

    column = 0

    def narrow(self, columns):
        """As a window that is made narrower: lines that are too long go on in the next one."""
        parts = [[row[i : i + columns] for i in range(0, len(row), columns)] for row in self.rows]
        self.rows = [part for row in parts for part in row or [""]]
        self.at = len(self.rows) - 1

    def _obey(self, number, letter):
        if letter == "F":
            self.at, self.column = self.at - int(number), 0
        elif letter == "K":
            self.rows[self.at] = self.rows[self.at][: self.column]
        elif letter == "J" and number == "":
            self.rows[self.at] = self.rows[self.at][: self.column]
            del self.rows[self.at + 1 :]
        elif (number, letter) == ("2", "J"):
            self.rows = [""] * len(self.rows)
        elif letter == "H":
            self.at = self.column = 0
        else:
            assert letter == "m", (number, letter)
            self.looks.append(number)


def screen(terminal, scene=None, size=(60, 24), **environment):
    return Screen(scene or Scene(), terminal, size=lambda: size, environment=environment)


def words_of(drawn):
    return ["".join(words for _, words in pieces) for pieces in drawn]


def test_what_is_told_and_what_is_recomputed_stands_in_lines():
    drawn = lines(sight(), 60, 24)
    assert words_of(drawn) == [
        "touch-red-1",
        "  instruction   touch the red marker",
        "  rate          9.9 of 10 Hz",
        "  misses        3: 2 ticks dropped, 1 held",
        "  recomputed    vision 31.2 ms, suffix 2.0 ms",
        "  kept          prefix, anchor",
    ]
    assert [words for pieces in drawn for how, words in pieces if how == BAD] == [FIGURES[2].words]


def test_a_stop_stands_above_all():
    stop = Stop(number=1, why="an operator pressed stop", may_release=False)
    assert words_of(lines(sight(stop=stop), 60, 24))[1] == " STOPPED: an operator pressed stop "
    assert line(sight(stop=stop)).startswith("touch-red-1: STOPPED: an operator pressed stop; ")


@pytest.mark.parametrize("columns", [1, 2, 17, 30, 37, 60])
@pytest.mark.parametrize("rows", [1, 4, 24])
def test_a_drawing_fits(columns, rows):
    many = {f"stage {number}": 1.0 for number in range(30)}
    drawn = words_of(lines(sight(stages=many, title="t" * 99), columns, rows))
    assert len(drawn) <= rows and max(map(len, drawn)) <= columns
    if (columns, rows) == (60, 24):
        assert all(name in " ".join(" ".join(drawn).split()) for name in many), "it is wrapped"
        assert drawn[0] == "t" * 57 + "..."


def test_wide_characters_are_counted_as_wide_and_commands_to_the_terminal_are_not_passed_on():
    shown = sight(title="\u89e6" * 40, figures=[Figure("a\x1b[2J", "b\x07\u202ec\u0301")])
    title, figure, *_ = words_of(lines(shown, 21, 9))
    assert title == "\u89e6" * 9 + "..."
    assert figure == "  a?[2J         b??c\u0301"
    assert "\x1b" not in line(shown) and "\n" not in line(shown)


def test_a_drawing_goes_over_the_last_one_and_leaves_what_stood_above():
    terminal, scene = Terminal(), Scene()
    terminal.write("before\n")
    shown = screen(terminal, scene)
    shown.draw()
    scene.shown = sight(figures=FIGURES[:1], stages={})
    shown.draw()
    assert terminal.rows == ["before", "touch-red-1", "  instruction   touch the red marker", ""]
    terminal.write("after")
    assert terminal.rows[-1] == "after"


def test_a_window_that_changes_is_drawn_anew_within_its_new_size():
    terminal, scene, size = Terminal(), Scene(), [(60, 24)]
    shown = Screen(scene, terminal, size=lambda: size[0], environment={})
    shown.draw()
    size[0] = (31, 4)
    terminal.narrow(31)
    shown.draw()
    assert [row for row in terminal.rows if row] == [
        "touch-red-1", "  instruction   touch the red", "                marker",
    ]  # fmt: skip
    assert max(map(len, terminal.rows)) <= 30


def test_colours_are_there_and_gone_where_nobody_wants_them():
    coloured, plain, empty = Terminal(), Terminal(), Terminal()
    screen(coloured).draw()
    screen(plain, NO_COLOR="1").draw()
    screen(empty, NO_COLOR="").draw()
    assert BAD in coloured.looks and plain.looks == [] and empty.looks == coloured.looks
    assert plain.rows == coloured.rows


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {}])
def test_where_nothing_can_be_drawn_there_is_a_line(environment):
    terminal = Terminal(is_terminal="TERM" in environment)
    shown = screen(terminal, **environment)
    shown.draw()
    shown.draw()
    told = (
        "touch-red-1: instruction touch the red marker; rate 9.9 of 10 Hz; "
        "misses 3: 2 ticks dropped, 1 held; recomputed vision 31.2 ms, suffix 2.0 ms\n"
    )
    assert terminal.getvalue() == 2 * told


def test_a_terminal_that_takes_nothing_keeps_nobody_waiting():
    inside, go = threading.Event(), threading.Event()

    class Held(Terminal):
        def write(self, text):
            inside.set()
            assert go.wait(10 * MAX_WAIT_S)

    shown = screen(Held())
    shown.start()
    assert inside.wait(MAX_WAIT_S)
    closing = threading.Thread(target=shown.close)
    closing.start()
    closing.join(MAX_WAIT_S)
    assert not closing.is_alive(), "the thread still writes, and nobody waits for it"
    go.set()


def test_a_terminal_that_is_gone_ends_the_drawing_and_nothing_else():
    class Gone(Terminal):
        def flush(self):
            raise OSError("gone")

    shown = screen(Gone())
    shown.start()
    shown._thread.join(MAX_WAIT_S)
    assert not shown._thread.is_alive()
    shown.close()


def test_a_run_shows_what_it_does_on_standard_error(demo_bundle, capsys):
    from models.demo import EPISODES

    options = ["--rate-hz", "100", "--max-steps", "6", "--live", "--page", "0"]
    assert main(["run", str(demo_bundle), "--episodes", str(EPISODES / "touch-red-1.npz"),
                 *options]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert out.startswith("page: http://127.0.0.1:")
    last = err.splitlines()[-1]
    assert last.startswith("touch-red-1: instruction ") and "; step 6, " in last
    assert "; recomputed frame_vision " in last and "kept" not in last
    assert json.loads(out.splitlines()[-1])["steps"] == 6


@pytest.mark.parametrize(("port", "words"), [("-1", "in [0, 65535], got -1"), ("70000", "70000")])
def test_a_page_at_no_port_is_refused(port, words, demo_bundle, capsys):
    line = ["run", str(demo_bundle), "--episodes", "none.npz", "--page", port]
    assert main(line) == 2
    assert words in capsys.readouterr().err
