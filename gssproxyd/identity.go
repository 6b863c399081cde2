package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/keytab/sealed"
	"gssproxyd/mech/krb5/etype"
)

// The host's identity, which opens sealed keytabs: where the daemon has it, and where the commands
// that root runs beside it find the same one.

// unitCredentials is where systemd puts the credentials of the unit that is shipped. The daemon is
// told; a command is not.
const unitCredentials = "/run/credentials/gssproxyd.service"

// identityDir is the state directory as the host's identity is concerned: the one that was named,
// else that of the unit that is shipped, and where there is none of that the default. Who runs a
// command has not the unit's environment, and means the same daemon.
func (o *options) identityDir() string {
	if o.stateDir != "" {
		return o.stateDir
	}
	if unit := filepath.Join(defaultStateDir, "state"); !absent(unit) {
		return unit
	}
	return defaultStateDir
}

// credentials is the directory that a service manager keeps the identity in, if it does. Who names a
// state directory may mean another daemon than the unit's.
func (o *options) credentials() string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" && o.stateDir == "" && os.Geteuid() == 0 {
		return unitCredentials
	}
	return dir
}

// keytabs reads keytabs for a command as the daemon of a configuration does; nil: of none.
func (o *options) keytabs(c *conf.Config, users conf.Users) *keytab.Reader {
	r := &keytab.Reader{Unseal: func(content []byte) (etype.Secret, error) {
		i, err := sealed.HostIdentity(o.credentials(), o.identityDir())
		if err != nil {
			return nil, err
		}
		return i.Open(content)
	}}
	for _, name := range []string{o.runAsUser, daemonUser(c), unitUser} {
		if uid, err := users.UID(name); name != "" && err == nil {
			r.Owners = append(r.Owners, uid)
		}
	}
	return r
}

// takeIdentity takes the identity that a service manager hands over, while this is the user who may
// read it. In the state directory it is the user's that the daemon becomes, and is read when there is
// something to open.
func (d *daemon) takeIdentity() error {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" || d.o.userproxy {
		return nil
	}
	i, err := sealed.Credential(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sealed keytabs: %w", err)
	}
	d.identity = i
	return nil
}

// unsealer opens sealed keytabs; nil in userproxy mode, where what is kept does not outlive a
// session.
func (d *daemon) unsealer() func(content []byte) (etype.Secret, error) {
	if d.o.userproxy {
		return nil
	}
	return func(content []byte) (etype.Secret, error) {
		i := d.identity
		if i == nil {
			var err error
			if i, err = sealed.HostIdentity("", d.o.identityDir()); err != nil {
				return nil, err
			}
		}
		return i.Open(content)
	}
}
