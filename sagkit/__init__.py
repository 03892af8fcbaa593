"""sagkit: self-supervised image embeddings whose global structure can be trusted.

SAG-VICReg is VICReg plus random-walk pairing: in every batch a similarity graph is built, weighted random walks on it
choose further positive pairs, and a weighted invariance term pulls those together.

One letter, one meaning, in every signature and comment:

    B  images in a batch           N  nodes of a graph, rows of a feature matrix
    F  width of features h         K  neighbours kept per node
    D  width of projections z      L  steps of a walk
    C  classes                     H, W  height and width of an image, pixels
    S  walks; a path has L + 1     P  pairs

The house, in the order data flows through it; a module imports only from rows above its own:

    shapes decode augment model graph hierarchy metrics timing plots   import nothing of sagkit
    subsets      training sets made from CIFAR-100             data       every image source as one ImageSet
    walk         random walks on a graph, and pairs            loss       the terms and their sums (walk's Pairs)
    pairing      graph + walk, the drop-in module              controls   what walks have to be compared with
    methods      one training objective per method             distill    DINO and I-JEPA
    optim, checkpoint, config    what a run needs
    evaluate     every figure of an encoder                    record     run records and stored encoders
    trainer      the state of a run, epoch by epoch            doctor     what is wrong with a run or an embedding
    train        fit, evaluate, record; the command line       report     tables from records
    purity       how often walk pairs share a class            retrieve, anomaly    look-alikes and oddities
    pilot        a folder to a report (photos: its demonstration; pilotpage, page: its HTML)
    examples     the drop-in module in other people's loops

Importing sagkit loads torch and jaxtyping's annotations, nothing else.
"""

from sagkit.loss import sag_vicreg_loss, vicreg_loss, walk_term
from sagkit.pairing import WalkPairing

__version__ = "0.1.0"
__all__ = ["WalkPairing", "sag_vicreg_loss", "vicreg_loss", "walk_term"]
