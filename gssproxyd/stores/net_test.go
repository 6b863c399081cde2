package stores

import (
	"net"
	"net/url"
	"os"
)

type netListener struct{}

func (*netListener) listen(address string) (net.Listener, error) { return net.Listen("tcp", address) }

func port(base string) string {
	u, _ := url.Parse(base)
	return u.Port()
}

// fileConn makes a connection of a file, which stays the caller's.
func fileConn(f *os.File) (net.Conn, error) { return net.FileConn(f) }
