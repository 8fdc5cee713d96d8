"""A world of one dot, for tests of what a model imagines of it."""

import numpy as np

SIDE = 16  # pixels


def picture(place, spread: float) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: a dot there."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    far = (rows - place[0]) ** 2 + (columns - place[1]) ** 2
    return np.uint8(255 * np.exp(-far / spread))[..., None].repeat(3, -1)


class Dot:
    """An episode whose robot is the dot, at `place`; commands are positions, in pixels."""

    spread = 4.0

    def views(self):
        return {"image": picture(self.place, self.spread)}

    def state(self):
        return self.place

    def still(self, last=None):
        return self.place
