"""Publish and subscribe: prices by market. One subscriber wants a market, one a product, and one both.

    python3 examples/pubsub.py
"""

import gevent

from gmultisocket.protocol import Pub, Sub

PRICES = {"rome.apples": "3.10", "rome.pears": "2.80", "oslo.apples": "4.20", "oslo.pears": "3.90"}


def follow(name: str, sub: Sub) -> None:
    prices = []
    for topic, content in sub:
        if topic == "market.closed":
            break
        prices.append(f"{topic} {content.decode()}")
    print(f"{name}: {', '.join(prices)}")
    sub.close()


def main() -> None:
    with Pub() as pub:
        address = pub.listen("tcp://127.0.0.1:0").address
        subs = {"all of Rome": ["rome.*"], "apples": ["*.apples"], "both": ["rome.>", "*.apples"]}
        following = []
        for name, patterns in subs.items():
            sub = Sub()
            sub.dial(address)
            for pattern in (*patterns, "market.closed"):
                # With a timeout it blocks until the publisher has the subscription: no later message is missed.
                sub.subscribe(pattern, timeout=5)
            following.append(gevent.spawn(follow, name, sub))

        for topic, price in PRICES.items():
            count = pub.publish(topic, price.encode())
            print(f"{topic} went to {count} of them")
        pub.publish("market.closed", b"")

        gevent.joinall(following, raise_error=True)


if __name__ == "__main__":
    main()
