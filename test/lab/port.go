package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Port returns a port of loopback at which a program will listen, over TCP, UDP or
// both, and keeps it from others until release is called.
//
// A port that the system chooses, and that is free again at once, would be anybody's
// until the program runs, and whenever it does not: the system gives it to the next
// connection of any other program. So this one is below those that systems choose,
// and another caller, also one of another process, is kept away by a guard: the
// port above it, which stays open.
func Port() (port int, release func(), err error) {
	for range 100 {
		port = 10_000 + 2*rand.IntN(10_000)
		guard, taken := net.Listen("tcp", address(port+1))
		if taken != nil {
			continue
		}
		if err = free(port); err == nil {
			return port, func() { guard.Close() }, nil
		}
		guard.Close()
	}
	return 0, nil, fmt.Errorf("no port is free: %w", err)
}

// free says whether nobody listens at a port.
func free(port int) error {
	tcp, err := net.Listen("tcp", address(port))
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", address(port))
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	return errors.Join(tcp.Close(), udp.Close())
}

func address(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
