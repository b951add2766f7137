#!/bin/sh
# what ipsecd says of a tunnel that has come up or is gone, and with which rights this runs
echo "$PLUTO_VERB $PLUTO_PEER_CLIENT as $(id -u)"
