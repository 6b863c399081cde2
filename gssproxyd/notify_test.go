package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// The service manager is shown both what the daemon does and how things stand with the kernel,
// whichever changes.
func TestStatusLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 4096)
		socket.SetReadDeadline(time.Now().Add(time.Minute))
		for said := ""; said != want; {
			n, err := socket.Read(buf)
			if err != nil {
				t.Fatalf("%q was not said, but %q: %v", want, said, err)
			}
			said = string(buf[:n])
		}
	}
	var nfsd string
	m := serviceManager{nfsd: func() string { return nfsd }}
	nfsd = "kernel NFS server: waiting for its module auth_rpcgss"
	m.nfsdChanged()
	expect("STATUS=Starting; kernel NFS server: waiting for its module auth_rpcgss")
	m.notify("READY=1", "Serving (failed to re-read config)")
	expect("READY=1\nSTATUS=Serving (failed to re-read config); kernel NFS server: waiting for its module auth_rpcgss")
	nfsd = "kernel NFS server: registered"
	m.nfsdChanged()
	expect("STATUS=Serving (failed to re-read config); kernel NFS server: registered")
	nfsd = ""
	m.nfsdChanged()
	expect("STATUS=Serving (failed to re-read config)")
}
