"""Rights: everybody may follow the news, only Ada may follow her own account, and that ends when she leaves the bank.

    python3 examples/rights.py

Who somebody is comes from the listener: the user's id here, and with ws or TLS what ``authorize`` there or the
certificate says. A content of the subscription would be a claim.
"""

from gmultisocket.errors import SubscriptionRefused
from gmultisocket.protocol import Pub, RemoteSub, Sub

CUSTOMERS: dict[int, str] = {}


def may_subscribe(subscriber: RemoteSub, pattern: str) -> bool | str:
    """Decide about one subscription. It may block: it runs in its own greenlet."""
    topic, _, owner = pattern.partition(".")
    if topic == "news":
        return True
    if topic == "account" and owner and owner == CUSTOMERS.get(subscriber.pipe.id):
        return True
    return "this is not your account"


def main() -> None:
    with Pub(authorize=may_subscribe) as pub, Sub() as ada, Sub() as eve:
        address = pub.listen("tcp://127.0.0.1:0").address
        ada.dial(address)
        pub.wait_pipes(1, timeout=5)
        CUSTOMERS.update(dict.fromkeys(pub.pipes, "ada"))
        eve.dial(address)

        for sub in (ada, eve):
            sub.subscribe("news.*", timeout=5)
        ada.subscribe("account.ada", timeout=5)
        for pattern in ("account.ada", ">"):
            try:
                eve.subscribe(pattern, timeout=5)
            except SubscriptionRefused as refusal:
                print(f"Eve: {refusal.pattern}: {refusal.reason}")

        pub.publish("account.ada", b"balance 100")
        pub.publish("news.today", b"the bank is open")
        print("Ada:", *ada.recv(timeout=5))
        print("Ada:", *ada.recv(timeout=5))
        print("Eve:", *eve.recv(timeout=5))

        CUSTOMERS.clear()
        print(pub.recheck(), "subscription was revoked")
        print("account.ada goes to", pub.publish("account.ada", b"closed"))


if __name__ == "__main__":
    main()
