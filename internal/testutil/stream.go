package testutil

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// A record of a checked stream: the connection's id, the record's number, a length, a checksum of those and of the
// bytes that follow. Whoever reads the stream sees every byte that is lost, doubled, out of order or of another stream.
const recordHead = 8 + 8 + 4 + 4

// AppendRecord appends a record with n bytes of payload, which depend on id and sequence.
func AppendRecord(b []byte, id, sequence uint64, n int) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, id)
	b = binary.BigEndian.AppendUint64(b, sequence)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = binary.BigEndian.AppendUint32(b, 0)
	seed := id*0x9e3779b97f4a7c15 ^ sequence*0xbf58476d1ce4e5b9
	for i := range n {
		b = append(b, byte(seed>>(8*(i%8)))+byte(i))
	}
	sum := crc32.ChecksumIEEE(b[start:])
	binary.BigEndian.PutUint32(b[start+20:], sum)
	return b
}

// ReadRecord reads a record and checks that it is number sequence of stream id.
func ReadRecord(r io.Reader, id, sequence uint64) error {
	var head [recordHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	gotID, gotSequence := binary.BigEndian.Uint64(head[0:]), binary.BigEndian.Uint64(head[8:])
	if gotID != id || gotSequence != sequence {
		return fmt.Errorf("stream %d: record %d of stream %d came where record %d was due", id, gotSequence, gotID, sequence)
	}
	n, sum := binary.BigEndian.Uint32(head[16:]), binary.BigEndian.Uint32(head[20:])
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	binary.BigEndian.PutUint32(head[20:], 0)
	if got := crc32.Update(crc32.ChecksumIEEE(head[:]), crc32.IEEETable, body); got != sum {
		return fmt.Errorf("stream %d: record %d has checksum %#x, its head says %#x", id, sequence, got, sum)
	}
	return nil
}
