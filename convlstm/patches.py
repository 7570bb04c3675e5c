"""Space-to-depth and back: a frame as a smaller map of patches."""

from torch import Tensor


def to_patches(frames: Tensor, size: int) -> Tensor:
    """Folds each patch of pixels into channels (space-to-depth).

    Args:
        frames: (…, C, H, W), H and W divisible by `size`.
        size: Side of a patch, p.

    Returns:
        (…, p·p·C, H/p, W/p), channel (py·p + px)·C + c, the order of the public Moving MNIST
        benchmarks; equal to `torch.pixel_unshuffle` for one channel.
    """
    if size == 1:
        return frames
    *lead, c, h, w = frames.shape
    x = frames.reshape(*lead, c, h // size, size, w // size, size)  # (…, C, h, py, w, px)
    x = x.movedim((-3, -1), (-5, -4))  # (…, py, px, C, h, w)
    return x.reshape(*lead, size * size * c, h // size, w // size)


def from_patches(patches: Tensor, size: int) -> Tensor:
    """Undoes `to_patches`.

    Args:
        patches: (…, p·p·C, h, w).
        size: Side of a patch, p.

    Returns:
        Frames (…, C, h·p, w·p).
    """
    if size == 1:
        return patches
    *lead, depth, h, w = patches.shape
    c = depth // (size * size)
    x = patches.reshape(*lead, size, size, c, h, w)  # (…, py, px, C, h, w)
    x = x.movedim((-5, -4), (-3, -1))  # (…, C, h, py, w, px)
    return x.reshape(*lead, c, h * size, w * size)
