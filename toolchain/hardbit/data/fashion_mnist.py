"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT licence).

Digests of two kinds are held. `IDX_SHA256` is of the unpacked content, which every source must match: Debian's files
carry another gzip header than Zalando's and the same content. `GZIP_SHA256` is of Zalando's files as published, which a
download must match before it is kept.
"""

from __future__ import annotations

from pathlib import Path

from hardbit.data.mnist import idx_files, idx_reader
from hardbit.data.published import PublishedSet

__all__ = ["FASHION_MNIST", "GZIP_SHA256", "IDX_SHA256"]

IDX_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
GZIP_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}

FASHION_MNIST = PublishedSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    shape=(1, 28, 28),
    class_names=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    counts={"train": 60_000, "test": 10_000},
    files=idx_files("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", GZIP_SHA256),
    read=idx_reader("Fashion-MNIST", IDX_SHA256),
    npz="fashion-mnist.npz",
    package="dataset-fashion-mnist",
    system_folder=Path("/usr/share/datasets/fashion-mnist"),
)  # fmt: skip
