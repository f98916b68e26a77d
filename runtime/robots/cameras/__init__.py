"""Cameras in processes of their own: the newest whole pictures that belong together, or an error.

cameras = Cameras({"frame": RealSense(serial="...")})
"""

from .rig import Cameras
from .sources import OpenCV, RealSense, RealSenseFile, RecordedEpisode, VideoFile

__all__ = ["Cameras", "OpenCV", "RealSense", "RealSenseFile", "RecordedEpisode", "VideoFile"]
