package pods

import (
	"context"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// service answers the calls of the program in pods.x. Its context is of what it starts to serve, and
// not of a call.
type service struct {
	r   *Registry
	ctx context.Context
}

// Parallel implements [rpc.Service].
func (s *service) Parallel() int { return 1 }

// Handle implements [rpc.Service].
func (s *service) Handle(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	d := xdr.NewDecoder(c.Args)
	switch xdr.PodsProc(c.Proc) {
	case xdr.PodsRegister:
		var m xdr.PodsRegistration
		if m.Decode(d); d.Err() != nil {
			return reply, rpc.GarbageArgs
		}
		reg := fromWire(&m)
		return s.answer(s.r.register(s.ctx, &reg), reply), rpc.Success
	case xdr.PodsUnregister:
		var m xdr.PodsVolume
		if m.Decode(d); d.Err() != nil {
			return reply, rpc.GarbageArgs
		}
		return s.answer(s.r.unregister(m.Pod, m.Handle), reply), rpc.Success
	case xdr.PodsList:
		var m xdr.PodsRegistrations
		for _, reg := range s.r.list() {
			m.All = append(m.All, toWire(&reg))
		}
		return m.Append(reply), rpc.Success
	}
	return reply, rpc.ProcUnavail
}

func (s *service) answer(err error, reply []byte) []byte {
	var m xdr.PodsAnswer
	if err != nil {
		s.r.deny(err)
		text := "[" + string(reason.RegistrationDenied) + "] " + err.Error()
		m.Error = text[:min(len(text), maxError)]
	}
	return m.Append(reply)
}

// maxError is how long an error may be in an answer.
const maxError = 1023

func fromWire(m *xdr.PodsRegistration) Registration {
	return Registration{
		Pod:    peer.Pod{UID: m.Volume.Pod, Namespace: m.Namespace, ServiceAccount: m.ServiceAccount, Name: m.Name},
		Handle: m.Volume.Handle, Target: m.Target,
	}
}

func toWire(r *Registration) xdr.PodsRegistration {
	return xdr.PodsRegistration{
		Volume:    xdr.PodsVolume{Pod: r.UID, Handle: r.Handle},
		Namespace: r.Namespace, ServiceAccount: r.ServiceAccount, Name: r.Name, Target: r.Target,
	}
}
