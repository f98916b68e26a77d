"""Frames that tell which they are, in blocks of black and white that outlast lossy compression.

A frame also has one block of colour, so that a swap of channels shows.
"""

from pathlib import Path

import numpy as np

from runtime.recordings.recording import Recording, evenly, save_recording

COLOUR = (200, 40, 20)
NUM_EPISODES, NUM_FRAMES = 3, 7
WIDTH, HEIGHT, BITS = 64, 48, 8
ALL = [(e, i) for e in range(NUM_EPISODES) for i in range(NUM_FRAMES)]


def draw(episode, index):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row, number in ((0, index), (16, episode)):
        bits = [number >> bit & 1 for bit in range(BITS)]
        image[row : row + 16] = 255 * np.repeat(bits, WIDTH // BITS)[:, None]
    image[32:] = COLOUR
    return image


def identify(image):
    """(episode, index) of a drawn frame; also checks that it is RGB."""
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert abs(image[36:44, 4:-4].mean((0, 1)) - COLOUR).max() < 8
    blocks = image[:32].reshape(2, 16, BITS, WIDTH // BITS, 3)[:, 3:-3, :, 2:-2].mean((1, 3, 4))
    index, episode = (int(sum((row > 128) << np.arange(BITS))) for row in blocks)
    return episode, index


def names_of(observations):
    """(episode, index) of each, after checking that everything else belongs to it."""
    names = []
    for observation in observations:
        episode, index = identify(observation.now["frame"])
        assert identify(observation.first["frame"]) == (episode, 0)
        assert observation.instruction == f"task {episode % 2}"
        state = observation.now["state"]
        assert state.dtype == np.float32 and state.tolist() == [episode, index, 0.5]
        names.append((episode, index))
    return names


def write_episode(folder: Path, episode: int, length: int = NUM_FRAMES) -> None:
    """A recording of drawn frames, named by its number."""
    recording = Recording(
        instruction=f"task {episode % 2}",
        task="trial",
        seed=episode,
        rate_hz=10.0,
        streams={
            "frame": evenly(np.stack([draw(episode, i) for i in range(length)]), 10.0),
            "state": evenly(np.array([[episode, i, 0.5] for i in range(length)], np.float32), 10.0),
        },
        actions=np.zeros((length, 2), np.float32),
        success=True,
    )
    save_recording(recording, folder / f"{episode:02d}.npz")
