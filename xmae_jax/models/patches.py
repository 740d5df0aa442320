"""Films to patches, and back."""

from jaxtyping import Array, Float, Num


def patchify(image: Num[Array, "b h w 1"], patch_size: int) -> Num[Array, "b n pp"]:
    """Cut a film into row-major patches, each flattened as (row, column)."""
    b, h, w, _ = image.shape
    p = patch_size
    x = image.reshape(b, h // p, p, w // p, p)
    return x.transpose(0, 1, 3, 2, 4).reshape(b, (h // p) * (w // p), p * p)


def unpatchify(
    patches: Float[Array, "b n pp"], grid: tuple[int, int], patch_size: int
) -> Float[Array, "b h w 1"]:
    """Undo `patchify`."""
    (gh, gw), p = grid, patch_size
    x = patches.reshape(-1, gh, gw, p, p).transpose(0, 1, 3, 2, 4)
    return x.reshape(-1, gh * p, gw * p, 1)
