"""Size and full digest of every file of CIFAR, MNIST and STL-10 that this project reads: one table.

Keys are ``<data set>/<file name>``. Sources:

[gluon]   ``CIFAR10``, ``CIFAR100`` and ``MNIST`` of mxnet 1.9.1, in
          ``gluon/data/vision/datasets.py`` (sha1).
[authors] the table on https://www.cs.toronto.edu/~kriz/cifar.html (md5 of the archives).
[tv]      ``torchvision/datasets/cifar.py`` (md5 of the python batches).
[tv-stl]  ``torchvision/datasets/stl10.py`` (md5); the sizes follow from the numbers of images that
          the authors' page gives. Nobody here has read the real files: no sha256 but the next.
[tfds]    ``url_checksums/stl10.txt`` of TensorFlow Datasets (size and sha256 of the archive).
[keras]   ``keras/datasets/cifar10.py`` and ``cifar100.py`` (sha256 of the python archives).
[ruby]    torchvision-ruby, ``cifar10.rb`` and ``cifar100.rb`` (sha256 of the binary version).

The six sha256 of the CIFAR-10 ``.bin`` files and the md5 and sizes of the CIFAR-10 python batches
were also computed from the files themselves, whose sha1 are those of Gluon. So were the digests of
MNIST: Gluon and torchvision publish sha1 and md5 of the four ``.gz``, and these files have them.
"""

from __future__ import annotations

import re

from formats.downloads.file_digest import FileDigest


def _table(text: str) -> dict[str, tuple[FileDigest, ...]]:
    """Return the versions of each file: its name, size or ?, and hashes; a file may come again."""
    table: dict[str, tuple[FileDigest, ...]] = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        if not entry.startswith("#"):
            name, size, *hashes = entry.split()
            known = dict(value.split("=") for value in hashes)
            version = FileDigest(None if size == "?" else int(size), **known)
            table[name] = (*table.get(name, ()), version)
    return table


TABLE = _table(
    """
# CIFAR-10, binary version: sha256 [ruby], sha1 [gluon].
cifar10/data_batch_1.bin 30730000
    sha256=cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
    sha1=aadd24acce27caa71bf4b10992e9e7b2d74c2540
cifar10/data_batch_2.bin 30730000
    sha256=a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed
    sha1=c0ba65cce70568cd57b4e03e9ac8d2a5367c1795
cifar10/data_batch_3.bin 30730000
    sha256=bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67
    sha1=1dd00a74ab1d17a6e7d73e185b69dbf31242f295
cifar10/data_batch_4.bin 30730000
    sha256=014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48
    sha1=aab85764eb3584312d3c7f65fd2fd016e36a258e
cifar10/data_batch_5.bin 30730000
    sha256=755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add
    sha1=26e2849e66a845b7f1e4614ae70f4889ae604628
cifar10/test_batch.bin 30730000
    sha256=8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b
    sha1=67eb016db431130d61cd03c7ad570b013799c88c
# CIFAR-10, python batches: md5 [tv].
cifar10/data_batch_1 31035704 md5=c99cafc152244af753f735de768cd75f
cifar10/data_batch_2 31035320 md5=d4bba439e000b95fd0a9bffe97cbabec
cifar10/data_batch_3 31035999 md5=54ebc095f3ab1f0389bbae665268c751
cifar10/data_batch_4 31035696 md5=634d18415352ddfa80567beed471001a
cifar10/data_batch_5 31035623 md5=482c414d41f54cd18b22e5b47cb7c3cb
cifar10/test_batch 31035526 md5=40351d587109b95175f43aff81a1287e
# CIFAR-100, binary version: sha256 [ruby], sha1 [gluon]; 3,074 bytes a record.
cifar100/train.bin 153700000
    sha256=f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29
    sha1=e207cd2e05b73b1393c74c7f5e7bea451d63e08e
cifar100/test.bin 30740000
    sha256=d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a
    sha1=8fb6623e830365ff53cf14adec797474f5478006
# CIFAR-100, python batches: md5 [tv].
cifar100/train 155249918 md5=16019d7e3df5f24257cddd939b257f8d
cifar100/test 31049707 md5=f0ef6b0ae62326f3e7ffdfab6717acfc
# Archives: md5 [authors]; sha256 of the binary ones [ruby], of the python ones [keras];
# Gluon's are packed differently: sha1 [gluon], size not published.
cifar10/cifar-10-binary.tar.gz 170052171
    sha256=c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
    md5=c32a1d4ab5d03f1284b67883e8d87530
cifar10/cifar-10-binary.tar.gz ? sha1=fab780a1e191a7eda0f345501ccd62d20f7ed891
cifar10/cifar-10-python.tar.gz 170498071
    sha256=6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce
    md5=c58f30108f718f92721af3b95e74349a
cifar100/cifar-100-binary.tar.gz 168513733
    sha256=58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec
    md5=03b5dce01913d631647c71ecec9e9cb8
cifar100/cifar-100-binary.tar.gz ? sha1=a0bb982c76b83111308126cc779a992fa506b90b
cifar100/cifar-100-python.tar.gz 169001437
    sha256=85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7
    md5=eb9058c3a382ffc7106e4002c42a8d85
# STL-10: md5 [tv-stl]; sha256 of the archive [tfds]. Images are 27,648 bytes, labels 1.
stl10/stl10_binary.tar.gz 2640397119
    sha256=f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866
    md5=91f7769df0f17e558f3565bffb0c7dfb
stl10/train_X.bin 138240000 md5=918c2871b30a85fa023e0c44e0bee87f
stl10/train_y.bin 5000 md5=5a34089d4802c674881badbb80307741
stl10/test_X.bin 221184000 md5=7f263ba9f9e0b06b93213547f721ac82
stl10/test_y.bin 8000 md5=36f9794fa4beb8a2c72628de14fa638e
# MNIST: sha1 of the .gz [gluon]; the rest computed from files with these sha1.
mnist/train-images-idx3-ubyte.gz 9912422
    sha256=440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
    sha1=6c95f4b05d2bf285e1bfb0e7960c31bd3b3f8a7d
    md5=f68b3c2dcbeaaa9fbdd348bbdeb94873
mnist/train-images-idx3-ubyte 47040016
    sha256=ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
    sha1=c3557c10f29b266e19b3eeee1553c85e0ef4a8ea
    md5=6bbc9ace898e44ae57da46a324031adb
mnist/train-labels-idx1-ubyte.gz 28881
    sha256=3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
    sha1=2a80914081dc54586dbdf242f9805a6b8d2a15fc
    md5=d53e105ee54ea40749a09fcbcd1e9432
mnist/train-labels-idx1-ubyte 60008
    sha256=65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
    sha1=adbf52269f5d842899f287c269e2883e40b4f6e2
    md5=a25bea736e30d166cdddb491f175f624
mnist/t10k-images-idx3-ubyte.gz 1648877
    sha256=8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
    sha1=c3a25af1f52dad7f726cce8cacb138654b760d48
    md5=9fb629c4189551a2d022fa330f9573f3
mnist/t10k-images-idx3-ubyte 7840016
    sha256=0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
    sha1=65e11ec1fd220343092a5070b58418b5c2644e26
    md5=2646ac647ad5339dbf082846283269ea
mnist/t10k-labels-idx1-ubyte.gz 4542
    sha256=f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
    sha1=763e7fa3757d93b0cdec073cef058b2004252c17
    md5=ec29112dd5afa0611ce80d1b7f02629c
mnist/t10k-labels-idx1-ubyte 10008
    sha256=ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
    sha1=a6d52cc628797e845885543326e9f10abb8a6f89
    md5=27ae3e4e09519cfbb04c329615203637
"""
)
