"""Pictures of embedding spaces, each drawn by one function: matplotlib for print, plotly to turn and to hover.

Points (N, *point_shape) go in, as for `oblique_clip.explore`; a figure comes out, which is neither shown nor saved. All
are legible in grey. Functions that end in `_figure` give plotly's and need `pip install "oblique-clip[explore]"`.
"""

from .against import draw_scales, draw_sizes
from .homology import draw_persistence
from .places import draw_places, places_figure
from .similarities import draw_similarities, draw_similarity_curves
from .softmax import draw_softmax
from .spheres import draw_circles, draw_spheres, spheres_figure
from .votes import draw_votes
from .way import draw_way

__all__ = [
    "draw_circles",
    "draw_persistence",
    "draw_places",
    "draw_scales",
    "draw_similarities",
    "draw_similarity_curves",
    "draw_sizes",
    "draw_softmax",
    "draw_spheres",
    "draw_votes",
    "draw_way",
    "places_figure",
    "spheres_figure",
]
