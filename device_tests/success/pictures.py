"""Episodes as pictures: a contact sheet of many, a film of one per task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from device_tests.success.episodes import EpisodeResult, Frames
from runtime.robots.metaworld import TASKS
from runtime.storage.files import MARK, PICTURE, replacing

FILM_SIDE, FILM_COLOURS = 168, 200
FILM_STRIDE, FILM_MS, FILM_END_MS = 2, 80, 2000
"""Actions per picture of the film, and how long pictures stay."""
PASSED_RGB, FAILED_RGB, PENDING_RGB = (5, 150, 105), (220, 38, 38), (107, 114, 128)


def draw_sheet(strips: Sequence[tuple[EpisodeResult, Frames]]) -> Image.Image:
    """A row per task, episodes side by side: anchor, middle and end, framed by the outcome."""
    tasks = list(dict.fromkeys(result.task for result, _ in strips))
    height, width = strips[0][1][0].shape[:2]
    cell_width, cell_height = 3 * width + 24, height + 56
    columns = max(sum(result.task == task for result, _ in strips) for task in tasks)
    sheet = Image.new("RGB", (columns * cell_width, len(tasks) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, task in enumerate(tasks):
        draw.text((12, row * cell_height + 8), task, "black")
        shown = [strip for strip in strips if strip[0].task == task]
        for column, (result, frames) in enumerate(shown):
            x, y = column * cell_width + 12, row * cell_height + 28
            colour = PASSED_RGB if result.success else FAILED_RGB
            box = (x - 4, y - 4, x + 3 * width + 3, y + height + 3)
            draw.rectangle(box, outline=colour, width=4)
            for i, frame in enumerate((frames[0], frames[len(frames) // 2], frames[-1])):
                sheet.paste(Image.fromarray(frame), (x + i * width, y))
            verdict = "success" if result.success else "no success"
            words = f"seed {result.seed}: {verdict}, {result.num_steps} steps"
            draw.text((x, y + height + 8), words, colour)
    return sheet


def write_sheet(strips: Sequence[tuple[EpisodeResult, Frames]], path: Path) -> None:
    """The sheet of `draw_sheet` as PNG."""
    comment = PngInfo()
    comment.add_text("Software", MARK)
    with replacing(path, PICTURE) as partial:
        draw_sheet(strips).save(partial, "PNG", optimize=True, pnginfo=comment)


def write_film(strips: Sequence[tuple[EpisodeResult, Frames]], path: Path) -> None:
    """An endless GIF: an episode of each task side by side, its anchor beside what is seen now.

    Of each task a success is shown, or a failure if there is none.
    """
    shown = []
    for number, task in enumerate(dict.fromkeys(result.task for result, _ in strips)):
        own = [strip for strip in strips if strip[0].task == task]
        turned = own[number % len(own) :] + own[: number % len(own)]  # not all of one seed
        shown.append(max(turned, key=lambda strip: strip[0].success))
    length = max(len(frames) for _, frames in shown)
    pictures = [_film_picture(shown, i) for i in range(0, length + FILM_STRIDE, FILM_STRIDE)]
    palette = pictures[-1].quantize(FILM_COLOURS)
    first, *rest = (p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures)
    durations = [FILM_MS] * len(rest) + [FILM_END_MS]
    with replacing(path, PICTURE) as partial:
        first.save(
            partial, "GIF", save_all=True, append_images=rest, duration=durations, loop=0,
            comment=MARK.encode(),
        )  # fmt: skip


def _film_picture(shown: Sequence[tuple[EpisodeResult, Frames]], index: int) -> Image.Image:
    """All episodes after `index` actions; those that are over stand still."""
    font = ImageFont.load_default(15)
    cell_width, cell_height = 2 * FILM_SIDE + 36, FILM_SIDE + 64
    rows = -(-len(shown) // 2)
    picture = Image.new("RGB", (min(len(shown), 2) * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(picture)
    for number, (result, frames) in enumerate(shown):
        x, y = number % 2 * cell_width + 12, number // 2 * cell_height + 30
        draw.text((x, y - 24), f'"{TASKS[result.task].instruction}"', "black", font)
        over = index >= len(frames) - 1
        for side, frame in enumerate((frames[0], frames[min(index, len(frames) - 1)])):
            scaled = Image.fromarray(frame).resize((FILM_SIDE, FILM_SIDE), Image.Resampling.NEAREST)
            picture.paste(scaled, (x + side * (FILM_SIDE + 12), y))
        colour = (PASSED_RGB if result.success else FAILED_RGB) if over else PENDING_RGB
        verdict = ("success" if result.success else "no success") if over else "running"
        draw.text((x, y + FILM_SIDE + 6), "anchor: the first frame", PENDING_RGB, font)
        words = f"now: step {min(index, len(frames) - 1)}, {verdict}"
        draw.text((x + FILM_SIDE + 12, y + FILM_SIDE + 6), words, colour, font)
    return picture
