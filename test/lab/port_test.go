package lab

import (
	"net"
	"testing"
)

// A port is given to one caller until it is released, and can be listened at.
func TestPort(t *testing.T) {
	given := map[int]bool{}
	for range 200 {
		port, release, err := Port()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if given[port] {
			t.Fatalf("port %d is given twice", port)
		}
		given[port] = true
		ln, err := net.Listen("tcp", address(port))
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
	}
}
