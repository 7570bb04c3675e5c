"""Pictures of forecasts: an animation, as GIF or MP4, and a film strip.

Clips are `(T, C, H, W)` with one channel (gray) or three (RGB): `uint8`, `uint16`, or floats in
[0, 1] (clipped for display), as arrays or as tensors on any device. Gray borders mean context,
which truth and forecast share, blue ones the truth and orange ones the forecast. Lead times count
from +1; the last context frame is 0.
"""

from convlstm.render.animation import forecast_frames
from convlstm.render.gif import encode_gif, save_gif
from convlstm.render.mp4 import save_mp4
from convlstm.render.strip import save_strip

__all__ = ["encode_gif", "forecast_frames", "save_gif", "save_mp4", "save_strip"]
