# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title Nodes that stand by what they sign: a stake, lost by whoever signs two things about one question.
@license Apache-2.0
@dev A node is its delegate: the key that counter-signs its receipts, and that registers itself. That a peer of
     the swarm is this delegate's is said by the peer's own signed announcement.
     Nobody is in charge of this contract, and nothing of it can be changed.
"""

struct Node:
    stake: uint256
    owner: address
    peer: bytes32
    leaves_at: uint256

event Registered:
    delegate: indexed(address)
    owner: indexed(address)
    peer: bytes32
    stake: uint256

event Leaving:
    delegate: indexed(address)
    at: uint256

event Left:
    delegate: indexed(address)
    amount: uint256

event Slashed:
    delegate: indexed(address)
    reporter: indexed(address)
    question: bytes32
    amount: uint256

DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
RECEIPT_TYPE: constant(bytes32) = keccak256("Receipt(bytes32 question,bytes32 content)")
NAME: constant(bytes32) = keccak256("Shoal")
VERSION: constant(bytes32) = keccak256("1")
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
LEAST_STAKE: constant(uint256) = 10**16
DELAY: constant(uint256) = 7 * 86400
MOST_MODELS: constant(uint256) = 8

nodes: public(HashMap[address, Node])
models: HashMap[address, DynArray[bytes32, MOST_MODELS]]


@view
@external
def models_of(delegate: address) -> DynArray[bytes32, MOST_MODELS]:
    """
    @notice The digests of the models that a node says it serves.
    """
    return self.models[delegate]


@payable
@external
def register(owner: address, peer: bytes32, models: DynArray[bytes32, MOST_MODELS]):
    """
    @notice Stake for the key that calls, add to its stake, or say that it serves other models.
    @param owner Who gets the stake back. Only the first call says so.
    @param peer The ed25519 key of the peer.
    """
    node: Node = self.nodes[msg.sender]
    if node.owner == empty(address):
        assert owner != empty(address), "nobody"
        node.owner = owner
    # Else whoever has the delegate's key could keep the owner from its stake for ever.
    assert node.leaves_at == 0, "leaving"
    node.stake += msg.value
    node.peer = peer
    assert node.stake >= LEAST_STAKE, "stake"
    self.nodes[msg.sender] = node
    self.models[msg.sender] = models
    log Registered(delegate=msg.sender, owner=node.owner, peer=peer, stake=node.stake)


@external
def leave(delegate: address):
    """
    @notice Want the stake back. Until then it can be lost as before.
    """
    node: Node = self.nodes[delegate]
    assert msg.sender == delegate or msg.sender == node.owner, "owner"
    assert node.stake > 0, "unknown"
    assert node.leaves_at == 0, "leaving"
    self.nodes[delegate].leaves_at = block.timestamp + DELAY
    log Leaving(delegate=delegate, at=block.timestamp + DELAY)


@external
def withdraw(delegate: address):
    """
    @notice Give the owner its stake, once it may have it.
    """
    node: Node = self.nodes[delegate]
    assert node.leaves_at != 0 and block.timestamp >= node.leaves_at, "not yet"
    self.nodes[delegate] = empty(Node)
    self.models[delegate] = empty(DynArray[bytes32, MOST_MODELS])
    log Left(delegate=delegate, amount=node.stake)
    raw_call(node.owner, b"", value=node.stake)


@view
@internal
def _signer(question: bytes32, content: bytes32, r: uint256, s: uint256, v: uint256) -> address:
    assert s <= HALF_ORDER, "signature"
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))
    receipt: bytes32 = keccak256(abi_encode(RECEIPT_TYPE, question, content))
    return ecrecover(keccak256(concat(b"\x19\x01", domain, receipt)), v, r, s)


@external
def slash(question: bytes32, one: bytes32, other: bytes32, a: uint256[3], b: uint256[3]):
    """
    @notice Take the stake of who signed two things about one question. Half is the reporter's. The other half
            stays here for ever, so that no node gains by reporting itself.
    @param a r, s and v of the signature of the first, b of the second.
    """
    assert one != other, "same"
    delegate: address = self._signer(question, one, a[0], a[1], a[2])
    assert delegate != empty(address), "signature"
    assert delegate == self._signer(question, other, b[0], b[1], b[2]), "signers"
    stake: uint256 = self.nodes[delegate].stake
    assert stake > 0, "no stake"
    self.nodes[delegate].stake = 0
    log Slashed(delegate=delegate, reporter=msg.sender, question=question, amount=stake)
    raw_call(msg.sender, b"", value=stake // 2)
