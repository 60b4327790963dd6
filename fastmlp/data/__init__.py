"""Images of handwritten digits, as datasets for any `torch.utils.data.DataLoader`.

    train = MNISTDataset("mnist", train=True)            # PNG tree or IDX files
    loader = DataLoader(train, batch_size=50, shuffle=True, collate_fn=collate)
    for images, labels in loader: ...                    # float32 [50, 1, 28, 28], int64 [50]

Without `collate_fn=collate` the same batches come, only slower. And for tensors of any kind that
are in memory, a loader that gathers each batch in one go:

    for inputs, labels in TensorLoader(x, y, batch_size=50, shuffle=True): ...
"""

from .augment import deskew, distort
from .digits import DigitsDataset
from .download import download_mnist
from .images import Batch, DataError, ImageDataset, collate
from .loader import TensorLoader
from .mnist import MNISTDataset
from .transforms import Compose, Deskew, Distort, Normalize, ToTensor

__all__ = [
    "Batch",
    "Compose",
    "DataError",
    "Deskew",
    "DigitsDataset",
    "Distort",
    "ImageDataset",
    "MNISTDataset",
    "Normalize",
    "TensorLoader",
    "ToTensor",
    "collate",
    "deskew",
    "distort",
    "download_mnist",
]
