#include "checksum.h"

/* The polynomial, its lowest power in the highest bit. */
#define POLYNOMIAL 0xEDB88320u

/* For each byte, what it makes of the checksum if 0 to 7 more bytes follow. */
static uint32_t tables[8][256];

void prepare_crc32(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        tables[0][byte] = crc;
    }
    for (int more = 1; more < 8; more++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = tables[more - 1][byte];
            tables[more][byte] = crc >> 8 ^ tables[0][crc & 0xFF];
        }
}

static uint32_t four_bytes(const uint8_t *data)
{
    return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

uint32_t add_to_crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    crc = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low = crc ^ four_bytes(data), high = four_bytes(data + 4);
        crc = tables[7][low & 0xFF] ^ tables[6][low >> 8 & 0xFF] ^ tables[5][low >> 16 & 0xFF] ^ tables[4][low >> 24] ^
              tables[3][high & 0xFF] ^ tables[2][high >> 8 & 0xFF] ^ tables[1][high >> 16 & 0xFF] ^ tables[0][high >> 24];
    }
    for (; size > 0; data++, size--)
        crc = crc >> 8 ^ tables[0][(crc ^ *data) & 0xFF];
    return ~crc;
}
