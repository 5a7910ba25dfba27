# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title An order of receipts: roots of Merkle trees over them, each on the one before it.
@license Apache-2.0
@dev The chain says when a root was here and what came before it, and nothing of what it stands for. Each sender
     has a chain of its own, so nobody can come between.
"""

event Anchored:
    sender: indexed(address)
    number: indexed(uint256)
    root: bytes32
    count: uint256
    head: bytes32

struct Head:
    number: uint256
    hash: bytes32

MOST_DEPTH: constant(uint256) = 32

heads: public(HashMap[address, Head])


@external
def anchor(root: bytes32, count: uint256):
    """
    @notice Put a root behind those that the sender has anchored before.
    @param count The leaves of the tree.
    """
    assert count > 0, "nothing"
    head: Head = self.heads[msg.sender]
    head.number += 1
    head.hash = keccak256(abi_encode(head.hash, root, count, block.timestamp))
    self.heads[msg.sender] = head
    log Anchored(sender=msg.sender, number=head.number, root=root, count=count, head=head.hash)


@pure
@external
def included(root: bytes32, leaf: bytes32, index: uint256, path: DynArray[bytes32, MOST_DEPTH]) -> bool:
    """
    @notice Whether a leaf is at a place of the tree of a root.
    @param leaf Its hash, before the prefix that leaves have.
    """
    hash: bytes32 = keccak256(concat(b"\x00", leaf))
    place: uint256 = index
    for beside: bytes32 in path:
        if place & 1 == 0:
            hash = keccak256(concat(b"\x01", hash, beside))
        else:
            hash = keccak256(concat(b"\x01", beside, hash))
        place >>= 1
    return hash == root and place == 0
