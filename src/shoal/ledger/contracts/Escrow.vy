# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title Payment channels: money of a payer that its cumulative vouchers give to a payee.
@license Apache-2.0
@dev The terms and vouchers are those of x402's scheme batch-settlement, in a domain of this contract's own.
     Nothing is kept of a payment channel but two amounts and a time: who calls says the terms, whose hash is
     its name. What was redeemed is never forgotten, so that no voucher pays twice, not even after a close.
     Nobody is in charge of this contract, and nothing of it can be changed.
"""

struct Terms:
    payer: address
    payer_signer: address
    payee: address
    payee_signer: address
    token: address
    delay: uint256
    salt: bytes32

event Deposited:
    id: indexed(bytes32)
    payer: indexed(address)
    payee: indexed(address)
    amount: uint256

event Redeemed:
    id: indexed(bytes32)
    amount: uint256
    paid: uint256

event Closing:
    id: indexed(bytes32)
    at: uint256

event Returned:
    id: indexed(bytes32)
    amount: uint256

DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
TERMS_TYPE: constant(bytes32) = keccak256("ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)")
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
NAME: constant(bytes32) = keccak256("x402 Batch Settlement")
VERSION: constant(bytes32) = keccak256("1")
LEAST_DELAY: constant(uint256) = 900
MOST_DELAY: constant(uint256) = 30 * 86400
LOW: constant(uint256) = 2**128 - 1
# A signature with a greater s is another form of one with a smaller (EIP-2).
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

# In one word, as a second one would cost more than all else: what was paid in and not taken back, and, in the
# low half, what of it was redeemed.
amounts: HashMap[bytes32, uint256]
# When the payer may take back what is left; 0 while it does not want to.
closes_at: public(HashMap[bytes32, uint256])


@view
@internal
def _digest(fields: bytes32) -> bytes32:
    # The chain's id is asked each time: after a fork of the chain, signatures hold on one side alone.
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))
    return keccak256(concat(b"\x19\x01", domain, fields))


@view
@internal
def _id(terms: Terms) -> bytes32:
    return self._digest(keccak256(abi_encode(TERMS_TYPE, terms)))


@view
@external
def channel_id(terms: Terms) -> bytes32:
    """
    @notice The name of a payment channel.
    """
    return self._id(terms)


@view
@external
def channel(id: bytes32) -> (uint256, uint256, uint256):
    """
    @notice What was paid in and not taken back, what of it was redeemed, and when it closes (0: not).
    """
    both: uint256 = self.amounts[id]
    return both >> 128, both & LOW, self.closes_at[id]


@payable
@external
def deposit(terms: Terms) -> bytes32:
    """
    @notice Open a payment channel, or add to it. Whatever is left of it goes back to its payer alone.
    """
    assert terms.token == empty(address), "only the chain's coin"
    assert terms.payer != empty(address) and terms.payee != empty(address), "nobody"
    assert terms.payer_signer != empty(address), "nobody signs"
    assert terms.delay >= LEAST_DELAY and terms.delay <= MOST_DELAY, "delay"
    assert msg.value > 0, "nothing"
    id: bytes32 = self._id(terms)
    assert self.closes_at[id] == 0, "closing"
    both: uint256 = self.amounts[id]
    total: uint256 = (both >> 128) + msg.value
    assert total <= LOW, "overflow"
    self.amounts[id] = (total << 128) | (both & LOW)
    log Deposited(id=id, payer=terms.payer, payee=terms.payee, amount=msg.value)
    return id


@external
def redeem(terms: Terms, amount: uint256, r: bytes32, s: bytes32, v: uint256):
    """
    @notice Pay out to the payee what a voucher adds to those before it.
    """
    assert msg.sender == terms.payee or msg.sender == terms.payee_signer, "payee"
    id: bytes32 = self._id(terms)
    both: uint256 = self.amounts[id]
    before: uint256 = both & LOW
    assert amount > before, "stale"
    assert amount <= both >> 128, "over deposit"
    assert convert(s, uint256) <= HALF_ORDER, "signature"
    signer: address = ecrecover(self._digest(keccak256(abi_encode(VOUCHER_TYPE, id, amount))), v, convert(r, uint256), convert(s, uint256))
    assert signer != empty(address) and signer == terms.payer_signer, "signature"
    self.amounts[id] = both - before + amount
    log Redeemed(id=id, amount=amount, paid=amount - before)
    raw_call(terms.payee, b"", value=amount - before)


@external
def request_close(terms: Terms):
    """
    @notice The payer wants back what is left. The payee has the delay of the terms to redeem what it has.
    """
    assert msg.sender == terms.payer or msg.sender == terms.payer_signer, "payer"
    id: bytes32 = self._id(terms)
    assert self.amounts[id] != 0, "unknown"
    assert self.closes_at[id] == 0, "closing"
    self.closes_at[id] = block.timestamp + terms.delay
    log Closing(id=id, at=block.timestamp + terms.delay)


@external
def withdraw(terms: Terms):
    """
    @notice Give the payer what is left, once it may have it.
    """
    id: bytes32 = self._id(terms)
    at: uint256 = self.closes_at[id]
    assert at != 0 and block.timestamp >= at, "not yet"
    self._return(id, terms.payer)


@external
def give_back(terms: Terms):
    """
    @notice The payee wants no more: what is left goes back to the payer at once.
    """
    assert msg.sender == terms.payee or msg.sender == terms.payee_signer, "payee"
    self._return(self._id(terms), terms.payer)


@internal
def _return(id: bytes32, payer: address):
    both: uint256 = self.amounts[id]
    redeemed: uint256 = both & LOW
    left: uint256 = (both >> 128) - redeemed
    assert left > 0, "nothing"
    self.amounts[id] = (redeemed << 128) | redeemed
    self.closes_at[id] = 0
    log Returned(id=id, amount=left)
    raw_call(payer, b"", value=left)
