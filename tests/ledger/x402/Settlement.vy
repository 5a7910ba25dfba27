# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title What x402's clients and we ask of x402's own settlement contract, written anew after its interface.
@dev For tests alone: it stands at the address that x402's clients sign for. It keeps their names, types and
     domain, and refuses what that contract refuses of what is used here. Batches have at most 4 claims.
"""

interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def balanceOf(owner: address) -> uint256: view

interface Collector:
    def collect(payer: address, token: address, amount: uint256, channel_id: bytes32, data: Bytes[1024]): nonpayable

struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32

struct Voucher:
    channel: ChannelConfig
    maxClaimableAmount: uint128

struct VoucherClaim:
    voucher: Voucher
    signature: Bytes[65]
    totalClaimed: uint128

struct ChannelState:
    balance: uint128
    totalClaimed: uint128

struct Withdrawal:
    amount: uint128
    initiatedAt: uint40

struct Receiver:
    totalClaimed: uint128
    totalSettled: uint128

DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
CONFIG_TYPE: constant(bytes32) = keccak256("ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)")
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")

channels: public(HashMap[bytes32, ChannelState])
pendingWithdrawals: public(HashMap[bytes32, Withdrawal])
refundNonce: public(HashMap[bytes32, uint256])
receivers: public(HashMap[address, HashMap[address, Receiver]])


@view
@internal
def _digest(fields: bytes32) -> bytes32:
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, keccak256("x402 Batch Settlement"), keccak256("1"), chain.id, self))
    return keccak256(concat(b"\x19\x01", domain, fields))


@view
@internal
def _id(config: ChannelConfig) -> bytes32:
    return self._digest(keccak256(abi_encode(CONFIG_TYPE, config)))


@view
@external
def getChannelId(config: ChannelConfig) -> bytes32:
    return self._id(config)


@external
def deposit(config: ChannelConfig, amount: uint128, collector: address, collectorData: Bytes[1024]):
    assert empty(address) not in [config.payer, config.receiver, config.receiverAuthorizer, config.token], "InvalidChannel"
    assert config.withdrawDelay >= 900 and config.withdrawDelay <= 30 * 86400, "WithdrawDelayOutOfRange"
    assert amount > 0, "ZeroDeposit"
    id: bytes32 = self._id(config)
    self.channels[id].balance += amount
    before: uint256 = staticcall Token(config.token).balanceOf(self)
    extcall Collector(collector).collect(config.payer, config.token, convert(amount, uint256), id, collectorData)
    after: uint256 = staticcall Token(config.token).balanceOf(self)
    assert after == before + convert(amount, uint256), "DepositCollectionFailed"


@external
def claim(voucherClaims: DynArray[VoucherClaim, 4]):
    assert len(voucherClaims) > 0, "EmptyBatch"
    for one: VoucherClaim in voucherClaims:
        config: ChannelConfig = one.voucher.channel
        assert msg.sender in [config.receiver, config.receiverAuthorizer], "NotAuthorizedToClaim"
        id: bytes32 = self._id(config)
        before: uint128 = self.channels[id].totalClaimed
        if one.totalClaimed <= before:
            continue
        assert one.totalClaimed <= one.voucher.maxClaimableAmount, "ClaimExceedsCeiling"
        assert one.totalClaimed <= self.channels[id].balance, "ClaimExceedsBalance"
        r: uint256 = convert(slice(one.signature, 0, 32), uint256)
        s: uint256 = convert(slice(one.signature, 32, 32), uint256)
        v: uint256 = convert(slice(one.signature, 64, 1), uint256)
        digest: bytes32 = self._digest(keccak256(abi_encode(VOUCHER_TYPE, id, one.voucher.maxClaimableAmount)))
        signer: address = ecrecover(digest, v, r, s)
        assert signer != empty(address) and signer == config.payerAuthorizer, "InvalidSignature"
        self.channels[id].totalClaimed = one.totalClaimed
        self.receivers[config.receiver][config.token].totalClaimed += one.totalClaimed - before


@external
def settle(receiver: address, token: address):
    state: Receiver = self.receivers[receiver][token]
    amount: uint128 = state.totalClaimed - state.totalSettled
    if amount == 0:
        return
    self.receivers[receiver][token].totalSettled = state.totalClaimed
    assert extcall Token(token).transfer(receiver, convert(amount, uint256))


@external
def initiateWithdraw(config: ChannelConfig, amount: uint128):
    assert msg.sender in [config.payer, config.payerAuthorizer], "InvalidChannel"
    id: bytes32 = self._id(config)
    assert self.pendingWithdrawals[id].initiatedAt == 0, "WithdrawalAlreadyPending"
    available: uint128 = self.channels[id].balance - self.channels[id].totalClaimed
    assert amount > 0 and amount <= available, "WithdrawAmountExceedsAvailable"
    self.pendingWithdrawals[id] = Withdrawal(amount=amount, initiatedAt=convert(block.timestamp, uint40))


@external
def finalizeWithdraw(config: ChannelConfig):
    assert msg.sender in [config.payer, config.payerAuthorizer], "NotAuthorizedToFinalizeWithdraw"
    id: bytes32 = self._id(config)
    pending: Withdrawal = self.pendingWithdrawals[id]
    assert pending.initiatedAt != 0, "WithdrawalNotPending"
    assert block.timestamp >= convert(pending.initiatedAt, uint256) + convert(config.withdrawDelay, uint256), "WithdrawDelayNotElapsed"
    amount: uint128 = min(pending.amount, self.channels[id].balance - self.channels[id].totalClaimed)
    self.pendingWithdrawals[id] = empty(Withdrawal)
    self.channels[id].balance -= amount
    assert extcall Token(config.token).transfer(config.payer, convert(amount, uint256))


@external
def refund(config: ChannelConfig, amount: uint128):
    assert msg.sender in [config.receiver, config.receiverAuthorizer], "NotAuthorizedToRefund"
    assert amount > 0, "ZeroRefund"
    id: bytes32 = self._id(config)
    self.refundNonce[id] += 1
    given: uint128 = min(amount, self.channels[id].balance - self.channels[id].totalClaimed)
    if given == 0:
        return
    self.channels[id].balance -= given
    pending: Withdrawal = self.pendingWithdrawals[id]
    if pending.initiatedAt != 0:
        if given >= pending.amount:
            self.pendingWithdrawals[id] = empty(Withdrawal)
        else:
            self.pendingWithdrawals[id].amount -= given
    assert extcall Token(config.token).transfer(config.payer, convert(given, uint256))
