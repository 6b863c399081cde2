package main

import (
	"cmp"
	"sync"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// serviceManager is told what the daemon is doing, and beside that how things stand with the
// kernel's NFS server. Either changes without the other.
type serviceManager struct {
	nfsd func() string // how things stand, empty where nobody wants to know

	mu    sync.Mutex
	doing string
}

// notify tells a state, and what the daemon is doing from now on.
func (m *serviceManager) notify(state, doing string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doing = doing
	m.send(state + "\n")
}

// nfsdChanged tells that things stand otherwise with the kernel.
func (m *serviceManager) nfsdChanged() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.send("")
}

func (m *serviceManager) send(state string) {
	status := cmp.Or(m.doing, "Starting")
	if m.nfsd != nil {
		if text := m.nfsd(); text != "" {
			status += "; " + text
		}
	}
	sd.SdNotify(false, state+"STATUS="+status)
}
